"""What each technique of the calibration is worth: top-1 and agreement with float, all in integers.

    python tools/ablation.py --checkpoint CKPT --calibration TRAIN.npz --data TEST.npz --out ablation.json

Both .npz files hold `images` (uint8, NHWC) and `labels`.  Every row is a Program of its own, run by the integer
engine over all of TEST; rows are written as they are finished, and a rerun skips those that are there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bitexact.inference import FloatModel
from bitexact.quantize import quantize
from intsim.engine import Engine
from intsim.files import write_atomically

PLAIN = {"search": "minmax", "k": 1, "reparameterize": False, "fuse": False}
ROWS = [
    ("min-max, one exponent per tensor", PLAIN),
    ("+ similarity search", {**PLAIN, "search": "cosine"}),
    ("+ k = 4 groups", {**PLAIN, "search": "cosine", "k": 4}),
    ("+ rank-1 state (r_C, r_L)", {"search": "cosine", "k": 4, "reparameterize": True, "fuse": False}),
    ("+ fused factors (r_D): profile int8", {}),
    ("profile wide-state", {"profile": "wide-state"}),
]


@click.command()
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--calibration", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--count", default=0, help="test images (0: all)")
def main(checkpoint: Path, calibration: Path, data: Path, out: Path, count: int) -> None:
    """Runs the table and writes it as JSON, row by row."""
    with np.load(data) as file:
        test, labels = file["images"], file["labels"]
    if count:
        test, labels = test[:count], labels[:count]
    with np.load(calibration) as file:
        calibration_images = file["images"]
    done = json.loads(out.read_text()) if out.exists() else {"n": len(test), "rows": []}
    cache = out.with_suffix(".float.npy")
    if not cache.exists():
        np.save(cache, FloatModel(checkpoint).classify(test))
    reference = np.load(cache).argmax(axis=1)
    rows = {row["name"]: row for row in done["rows"]}
    rows["float"] = {"name": "float", "top1": 100 * float((reference == labels).mean()), "agreement": 100.0}
    for name, settings in ROWS:
        if name not in rows:
            start = time.time()
            program = quantize(checkpoint, calibration_images, **settings)
            middle = time.time()
            found = Engine(program).classify(test).argmax(axis=1)
            rows[name] = {
                "name": name,
                "top1": 100 * float((found == labels).mean()),
                "agreement": 100 * float((found == reference).mean()),
            }
            click.echo(f"{name}: quantize {middle - start:.0f} s, eval {time.time() - middle:.0f} s", err=True)
        done = {"n": len(test), "rows": [rows[key] for key in ("float", *(r[0] for r in ROWS)) if key in rows]}
        write_atomically(out, (json.dumps(done, indent=1) + "\n").encode())
    for row in done["rows"]:
        click.echo(f"| {row['name']} | {row['top1']:.2f} | {row['agreement']:.2f} |")


if __name__ == "__main__":
    main()
