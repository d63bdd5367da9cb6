"""Runs exported ONNX files in onnxruntime, compares every tensor with the engine, and writes one JSON report.

    python tools/onnx_check.py --out tests/reports/onnx.json

Programs: the embedded one, the embedded checkpoint in the profile wide-state (calibrated on the embedded images), and
a random Vim-Tiny at 224 in both profiles, whose images are black, noise, and embedded images seven times as large.
Needs torch and onnxruntime.  Exit status: 0 no mismatch, 1 mismatches.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import onnx
import onnxruntime

from bitexact.quantize import quantize
from golden.onnx import onnx_bytes
from intsim import embedded
from intsim.engine import Engine
from intsim.files import write_atomically
from intsim.program import Array, Program
from intsim.program_file import program_bytes
from intsim.synthetic import VIM, random_program


def runs(count: int, large: int) -> dict[str, tuple[Callable[[], Program], Array]]:
    """Title -> how to make the Program, and its images."""
    images, _, _ = embedded.images()
    noise = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    enlarged = np.concatenate([np.zeros_like(noise), noise, images.repeat(7, axis=1).repeat(7, axis=2)])[:large]
    return {
        "embedded model, int8": (embedded.program, images[:count]),
        "embedded model, wide-state": (
            lambda: quantize(embedded.checkpoint_path(), images, profile="wide-state"),
            images[:count],
        ),
        "random Vim-Tiny at 224, int8": (lambda: random_program(0, VIM["tiny"], state_bits=8), enlarged),
        "random Vim-Tiny at 224, wide-state": (lambda: random_program(0, VIM["tiny"], state_bits=16), enlarged),
    }


def compare(program: Program, images: Array) -> dict[str, Any]:
    """Every tensor of every image, and the logits of the file without taps."""
    engine = Engine(program)
    file = program_bytes(program)
    plain, tapped = onnx_bytes(program), onnx_bytes(program, ["*"])
    elements = mismatches = 0

    def count(wanted: Array, got: Array) -> None:
        nonlocal elements, mismatches
        elements += wanted.size
        fits = wanted.shape == got.shape and wanted.dtype == got.dtype
        mismatches += int(np.count_nonzero(wanted != got)) if fits else wanted.size

    session = onnxruntime.InferenceSession(plain, providers=["CPUExecutionProvider"])
    for image in images:
        (logits,) = session.run(None, {"image": image[None]})
        count(engine.run(image[None])[program.logits].reshape(1, -1), logits)
    session = onnxruntime.InferenceSession(tapped, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for image in images:
        found = dict(zip(names, session.run(None, {"image": image[None]}), strict=True))
        wanted = engine.run(image[None], ["*"])
        del wanted["image"]
        for name, tensor in wanted.items():
            count(tensor[0], found[name])
    return {
        "program": program.digest,
        "images": len(images),
        "tensors": len(wanted),
        "elements": elements,
        "mismatches": mismatches,
        "program_bytes": len(file),
        "onnx_bytes": len(plain),
        "onnx_bytes_all_taps": len(tapped),
    }


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--count", default=64, show_default=True, help="Images of the embedded model.")
@click.option("--large", default=8, show_default=True, help="Images of Vim-Tiny.")
@click.option("--resume", is_flag=True, help="Go on with the report that --out names.")
def main(out: Path, count: int, large: int, resume: bool) -> None:
    report: dict[str, Any] = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, "runs": []}
    if resume:
        report["runs"] = json.loads(out.read_text())["runs"]
    done = {run["title"] for run in report["runs"]}
    for title, (make, images) in runs(count, large).items():
        if title in done:
            continue
        report["runs"].append({"title": title, **compare(make(), images)})
        for key in ("elements", "mismatches"):
            report[key] = sum(run[key] for run in report["runs"])
        write_atomically(out, (json.dumps(report, indent=1) + "\n").encode())
        print(json.dumps(report["runs"][-1]), flush=True)
    sys.exit(report["mismatches"] > 0)


if __name__ == "__main__":
    main()
