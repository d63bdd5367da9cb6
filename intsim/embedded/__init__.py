"""The model that ships with the package: a Vision Mamba trained on CIFAR-10, and 64 of its test images.

program_path()     the Program, profile `int8`
checkpoint_path()  the float checkpoint it was made from (fp16, official key names)
images()           64 images that the model was not trained on, with their classes
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from intsim.program import Program

HERE = Path(__file__).parent


def program_path() -> Path:
    """File of the embedded Program."""
    return HERE / "vim_cifar10_int8.safetensors"


def checkpoint_path() -> Path:
    """File of the embedded float checkpoint."""
    return HERE / "vim_cifar10.safetensors"


def images_path() -> Path:
    """Folder of the embedded images and their `labels.csv` (columns file, label, class)."""
    return HERE / "images"


def program() -> Program:
    """The embedded Program, checked as every Program is when it is loaded."""
    from intsim.program_file import load_program

    return load_program(program_path())


def images() -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """(pixels uint8 [64, 32, 32, 3], class index int64 [64], file names), in the order of `labels.csv`."""
    import PIL.Image

    with open(images_path() / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [row["file"] for row in rows]
    pixels = []
    for name in names:
        with PIL.Image.open(images_path() / name) as image:
            pixels.append(np.asarray(image.convert("RGB"), dtype=np.uint8))
    return np.stack(pixels), np.array([int(row["label"]) for row in rows], dtype=np.int64), names
