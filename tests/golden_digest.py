"""The embedded model's integers as hashes, `tests/golden_digest.json`: they are the same on every machine.

    python tests/golden_digest.py                        recomputes them with the engine; 1 and names if any differs
    python tests/golden_digest.py --threads 1 2          with each of these numbers of threads
    python tests/golden_digest.py --oracle               by the definitions in NumPy, without Numba
    python tests/golden_digest.py --write                makes the file anew: after a change of the model or of SPEC.md

The images are those of the bundle that `make golden` makes, and so are the bytes: of each constant, and of each tensor
of each image, the SHA-256 of the integers in their declared container, little-endian, in row-major order, which is what
follows the header of its .npy file.  The insides of the scans at every step are among them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from golden.commands.common import embedded_images
from golden.images import open_images
from intsim import embedded
from intsim.program import Array

FILE = Path(__file__).with_name("golden_digest.json")
IMAGES = 2


def sha256(values: Array) -> str:
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return hashlib.sha256(little.tobytes()).hexdigest()


def digests(oracle: bool = False, threads: int | None = None) -> dict[str, Any]:
    """What the file has: `program`, `constants` {name: SHA-256} and `images` [{source, tensors {name: SHA-256}}]."""
    program = embedded.program()
    runs: Any
    if oracle:
        from intsim.oracle import Oracle

        runs = Oracle(program)
    else:
        from intsim.engine import Engine

        runs = Engine(program, threads=threads)
    images = []
    for image in open_images(embedded_images(), program.image, classes=program.classes, count=IMAGES):
        found = runs.run(image.pixels[None], ["*"])
        assert list(found) == list(program.tensors)
        images.append({"source": image.name, "tensors": {name: sha256(v[0]) for name, v in found.items()}})
    constants = {name: sha256(values) for name, values in program.arrays.items()}
    return {"program": program.digest, "constants": constants, "images": images}


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs, in execution order."""
    told = [] if expected["program"] == found["program"] else ["program"]
    for name in expected["constants"].keys() | found["constants"].keys():
        if expected["constants"].get(name) != found["constants"].get(name):
            told.append(f"constant {name}")
    if [image["source"] for image in expected["images"]] != [image["source"] for image in found["images"]]:
        return [*told, "the list of images"]
    for index, (one, other) in enumerate(zip(expected["images"], found["images"], strict=True)):
        for name in dict.fromkeys([*other["tensors"], *one["tensors"]]):
            if one["tensors"].get(name) != other["tensors"].get(name):
                told.append(f"image {index}: {name}")
    return told


def committed() -> dict[str, Any]:
    expected: dict[str, Any] = json.loads(FILE.read_text(encoding="ascii"))
    return expected


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--oracle", action="store_true")
    parser.add_argument("--threads", type=int, nargs="+", default=[None])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.write:
        FILE.write_text(json.dumps(digests(oracle=True), indent=1) + "\n", encoding="ascii")
        print(f"{FILE}: written, by the oracle")
        return 0
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    if not options.oracle:
        import numba

        from intsim.kernels import cpu

        versions += f", Numba {numba.__version__}, kernels {cpu.choose()}"
    status = 0
    for threads in options.threads:
        told = differences(committed(), digests(options.oracle, threads))
        how = "oracle" if options.oracle else f"threads {threads or 'all'}"
        print(f"{versions}, {how}: {'the same' if not told else f'{len(told)} differ: ' + ', '.join(told[:5])}")
        status |= bool(told)
    return status


if __name__ == "__main__":
    sys.exit(main())
