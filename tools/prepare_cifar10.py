"""CIFAR-10 for the other tools: convert the official files, read either npz format, write sample images.

    python tools/prepare_cifar10.py convert --batches cifar-10-batches-py --out cifar10.npz
    python tools/prepare_cifar10.py split --data cifar10.npz --split test --out test.npz
    python tools/prepare_cifar10.py images --data cifar10.npz --out intsim/embedded/images --count 64 --seed 0

Two npz formats are read (``read_cifar10``):

* raw: ``train_images`` and ``test_images`` uint8 [count, 32, 32, 3], ``train_labels`` and ``test_labels``
  uint8 [count]; this is what ``convert`` writes;
* JPEG: per split ``{split}_jpeg`` uint8 (all files end to end), ``{split}_offset`` int64 [count + 1] and
  ``{split}_label`` uint8 [count].
"""

import argparse
import csv
import io
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = ("train", "test")


def read_cifar10(path: str, splits: tuple[str, ...] = SPLITS) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read an npz of either format: {split: (images uint8 [n, 32, 32, 3], labels uint8 [n])}.

    JPEG files are decoded with Pillow. Raises ValueError naming the missing array.
    """
    out = {}
    with np.load(path) as data:
        for split in splits:
            if f"{split}_images" in data:
                images, labels = data[f"{split}_images"], data[f"{split}_labels"]
            elif f"{split}_jpeg" in data:
                images = _decode(data[f"{split}_jpeg"], data[f"{split}_offset"])
                labels = data[f"{split}_label"]
            else:
                raise ValueError(f"{path}: has neither '{split}_images' nor '{split}_jpeg'")
            if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or len(images) != len(labels):
                raise ValueError(
                    f"{path}: split '{split}' has {images.dtype} images of shape {images.shape} and {len(labels)} "
                    f"labels; allowed are uint8 [n, 32, 32, 3] and n labels"
                )
            out[split] = images, labels.astype(np.uint8)
    return out


def _decode(stream: np.ndarray, offset: np.ndarray) -> np.ndarray:
    from PIL import Image

    images = np.empty((len(offset) - 1, 32, 32, 3), np.uint8)

    def decode(i):
        file = io.BytesIO(stream[offset[i] : offset[i + 1]].tobytes())
        images[i] = np.asarray(Image.open(file).convert("RGB"))

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(len(images)), chunksize=256))
    return images


class _ArraysOnly(pickle.Unpickler):
    """The official batches are pickles of a dict of bytes, a list of ints and one array; nothing else passes."""

    allowed = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    }

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"'{module}.{name}' is not allowed in a CIFAR-10 batch")
        return super().find_class(module, name)


def convert(batches: str, out: str) -> None:
    """Convert the folder ``cifar-10-batches-py`` of the official python version to a raw npz."""
    arrays = {}
    names = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    for split, files in names.items():
        images, labels = [], []
        for file in files:
            with open(Path(batches) / file, "rb") as handle:
                batch = _ArraysOnly(handle, encoding="bytes").load()
            images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.asarray(batch[b"labels"], np.uint8))
        arrays[f"{split}_images"] = np.ascontiguousarray(np.concatenate(images))
        arrays[f"{split}_labels"] = np.concatenate(labels)
    np.savez_compressed(out, **arrays)


def write_images(data: str, out: str, count: int, seed: int) -> None:
    """Write ``count`` test images, as even over the classes as can be, as PNG files and ``labels.csv``.

    Files are named INDEX_CLASS.png, with the index in the npz's test split.
    """
    from PIL import Image

    images, labels = read_cifar10(data, ("test",))["test"]
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(labels == c)) for c in range(len(CLASSES))]
    order = rng.permutation(len(CLASSES))
    rounds = -(-count // len(CLASSES))
    chosen = np.array([by_class[c][i] for i in range(rounds) for c in order])[:count]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "labels.csv", "w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["file", "label", "class"])
        for i in np.sort(chosen):
            name = CLASSES[labels[i]]
            file = f"{i:04d}_{name}.png"
            Image.fromarray(images[i]).save(folder / file, optimize=True)
            writer.writerow([file, int(labels[i]), name])


def write_split(data: str, split: str, count: int, seed: int, out: str) -> None:
    """Write `images` and `labels` of one split, as `intsim eval` and `intsim quantize` read them.

    ``count`` images in a random order drawn from ``seed``; with 0 all of them, in their own order.
    """
    images, labels = read_cifar10(data, (split,))[split]
    if count:
        chosen = np.random.default_rng(seed).permutation(len(images))[:count]
        images, labels = images[chosen], labels[chosen]
    np.savez(out, images=images, labels=labels)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("convert", help="official python-version batches to a raw npz")
    one.add_argument("--batches", required=True, help="folder cifar-10-batches-py")
    one.add_argument("--out", required=True, help="the npz to write")
    two = commands.add_parser("images", help="some test images as PNG files")
    two.add_argument("--data", required=True, help="an npz of either format")
    two.add_argument("--out", required=True, help="folder to write to")
    two.add_argument("--count", type=int, default=64)
    two.add_argument("--seed", type=int, default=0)
    three = commands.add_parser("split", help="one split as an npz of images and labels, all or a random part")
    three.add_argument("--data", required=True, help="an npz of either format")
    three.add_argument("--split", choices=SPLITS, required=True)
    three.add_argument("--count", type=int, default=0, help="images, in random order (0: all, in order)")
    three.add_argument("--seed", type=int, default=0)
    three.add_argument("--out", required=True, help="the npz to write")
    args = parser.parse_args(argv)
    if args.command == "convert":
        convert(args.batches, args.out)
    elif args.command == "split":
        write_split(args.data, args.split, args.count, args.seed, args.out)
    else:
        write_images(args.data, args.out, args.count, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
