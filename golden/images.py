"""Reads images as the Program takes them: uint8 [height, width, channels], of exactly its size, never resampled.

A path is one of

* an image file (PNG, JPEG, BMP, GIF, PPM, TIFF or WebP, 8 bits a channel);
* a folder of image files, optionally with `labels.csv` (columns `file` and `label`, or `class_index`);
* an ImageFolder tree: a subfolder of images for each class;
* an `.npz` with `images` (uint8 [n, H, W, C]) and optionally `labels` (n integers).

Files are decoded one at a time and an npz is read in sequence, so memory stays flat whatever the number of images.
Other files of a folder (by their ending) and hidden files are left alone.  EXIF orientation is not applied.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

import numpy as np

from golden.safe import read_plain
from intsim.errors import UserError
from intsim.program import Array
from intsim.program_file import one_line

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
DECODERS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
MAX_IMAGES = 10_000_000
MAX_PIXELS = 1 << 27
MAX_FILE = 512 << 20  # bytes of an image file
MAX_LABELS = 64 << 20  # bytes of a labels file
LABELS_FILE = "labels.csv"
LABEL_COLUMNS = ("label", "class_index")

Size = tuple[int, int, int]  # height, width, channels


@dataclass(frozen=True)
class Image:
    """An image ready for the Program.  name: as a user knows it; pixels: uint8 [H, W, C]; label: class index."""

    name: str
    pixels: Array
    label: int | None = None


class Images(Protocol):
    """Images to run, in order: an `ImageSet`, `golden.stimulus.Stimuli`, a list."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Image]: ...


@dataclass
class ImageSet:
    """Images in order, read when iterated.  labels: class index of each, or None and the reason in `no_labels`."""

    path: str
    names: list[str]
    labels: list[int] | None
    no_labels: str
    size: Size
    center_crop: bool
    picks: list[int] = field(default_factory=list)  # positions in the whole set, ascending
    files: list[Path] = field(default_factory=list)  # empty for an npz

    def __len__(self) -> int:
        return len(self.picks)

    def __iter__(self) -> Iterator[Image]:
        pixels = self._from_files() if self.files else self._from_npz()
        for pick, found in zip(self.picks, pixels, strict=True):
            yield Image(self.names[pick], found, None if self.labels is None else self.labels[pick])

    def batches(self, size: int) -> Iterator[list[Image]]:
        """Lists of at most `size` consecutive images."""
        batch: list[Image] = []
        for image in self:
            batch.append(image)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def stacks(self, size: int) -> Iterator[Array]:
        """The pixels of `batches`, uint8 [at most size, H, W, C]."""
        for batch in self.batches(size):
            yield np.stack([image.pixels for image in batch])

    def stack(self) -> Array:
        """All pixels at once, uint8 [n, H, W, C]."""
        return np.stack([image.pixels for image in self])

    def require_labels(self, classes: int) -> list[int]:
        """The label of each image.  Raises UserError unless every one has a label below `classes`."""
        if self.labels is None:
            raise UserError(f"{self.path}: has no labels: {self.no_labels}")
        chosen = [self.labels[pick] for pick in self.picks]
        for pick, label in zip(self.picks, chosen, strict=True):
            if not 0 <= label < classes:
                raise UserError(f"{self.names[pick]}: label is {label}, allowed are 0 .. {classes - 1}")
        return chosen

    def _from_files(self) -> Iterator[Array]:
        for pick in self.picks:
            yield read_image(self.files[pick], self.size, self.center_crop)

    def _from_npz(self) -> Iterator[Array]:
        wanted = set(self.picks)
        with _open_npz(self.path) as archive, _member(archive, self.path, "images") as file:
            shape = _array_header(file, self.path, "images")[0]
            length = int(np.prod(shape[1:], dtype=object))
            for position in range(self.picks[-1] + 1):
                try:
                    data = file.read(length)
                except (OSError, EOFError, zipfile.BadZipFile, ValueError) as problem:
                    raise UserError(f"{self.path}: images cannot be read: {one_line(str(problem))}") from None
                except Exception as problem:  # zlib.error and the other decompressors' own
                    raise UserError(f"{self.path}: images cannot be decompressed: {one_line(str(problem))}") from None
                if len(data) != length:
                    raise UserError(f"{self.path}: images ends within image {position} of {shape[0]}")
                if position in wanted:
                    whole = np.frombuffer(data, dtype=np.uint8).reshape(shape[1:])
                    yield fit(whole, self.size, self.center_crop, self.names[position])


def open_images(
    path: str | os.PathLike[str],
    size: Size,
    *,
    classes: Sequence[str] = (),
    count: int | None = None,
    center_crop: bool = False,
) -> ImageSet:
    """The images at `path` for a Program that takes `size` = (height, width, channels).

    classes: class names, by which the subfolders of a tree are told.  count: take so many, spread evenly over the
    set in its order (a set sorted by class gives some of each).  center_crop: cut larger images to size about
    their centre.  Raises UserError for a path that holds no images or fewer than `count`; the images themselves
    are checked as they are read.
    """
    place = Path(path)
    if place.is_dir():
        found = _open_folder(place, size, center_crop, classes)
    elif place.is_file() and place.suffix.lower() == ".npz":
        found = _open_npz_set(place, size, center_crop)
    elif place.is_file():
        found = ImageSet(str(path), [place.name], None, "a single image has none", size, center_crop, files=[place])
    elif place.exists():
        raise UserError(f"{path}: is neither a file nor a folder")
    else:
        raise UserError(f"{path}: there is no such file or folder")
    total = len(found.names)
    if count is not None and not 1 <= count <= total:
        raise UserError(f"{path}: {count} images are asked for, there are {total}")
    take = total if count is None else count
    found.picks = [i * total // take for i in range(take)]
    return found


# Image files


def read_image(path: Path, size: Size, center_crop: bool = False) -> Array:
    """Decodes one file to uint8 [H, W, C].

    Raises UserError, naming the file, if it is not an image, is damaged, is of another size (known from its header,
    before anything is decoded), has more than 8 bits a channel, transparency, or colour where the Program has none.
    """
    import PIL.Image

    data = read_plain(path, MAX_FILE)  # whole: a decoder that asks for more than there is then allocates nothing
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(io.BytesIO(data), formats=DECODERS) as image:
                check_size((image.height, image.width), size, center_crop, str(path))
                image.load()
                pixels = _pixels(image, size[2], str(path))
    except UserError:
        raise
    except PIL.UnidentifiedImageError:
        raise UserError(f"{path}: is not an image of a known kind ({', '.join(DECODERS)})") from None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        raise UserError(f"{path}: the image it declares is too large to be decoded") from None
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {one_line(str(problem.strerror or problem))}") from None
    except Exception as problem:  # a damaged file makes decoders raise nearly anything
        raise UserError(f"{path}: cannot be decoded: {one_line(str(problem))}") from None
    return fit(pixels, size, center_crop, str(path))


def _pixels(image: Any, channels: int, name: str) -> Array:
    """uint8 [H, W, channels] of an opened Pillow image."""
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{name}: has mode {image.mode}, more than 8 bits a channel; allowed are 8 bits")
    alpha = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if alpha and int(np.asarray(image.convert("RGBA"))[..., 3].min()) < 255:
        raise UserError(f"{name}: is partly transparent; flatten it first")
    if channels == 3:
        return np.asarray(image.convert("RGB"))
    if channels == 1 and image.mode in ("L", "1", "LA"):
        return np.asarray(image.convert("L"))[..., None]
    raise UserError(f"{name}: has mode {image.mode}, the Program takes {channels} channels")


def check_size(found: tuple[int, int], size: Size, center_crop: bool, name: str) -> None:
    """Raises UserError unless an image of (height, width) has the Program's size, or can be cut to it."""
    height, width = found
    if (height, width) == size[:2]:
        return
    large = height >= size[0] and width >= size[1]
    if center_crop and large:
        return
    larger = " or larger" if center_crop else ""
    hint = "; --center-crop cuts larger images" if large else ""
    allowed = f"{size[0]} x {size[1]}{larger}{hint}"
    raise UserError(f"{name}: is {height} x {width} pixels (height x width), allowed is {allowed}")


def fit(pixels: Array, size: Size, center_crop: bool, name: str) -> Array:
    """`pixels` if they are of the Program's size, else their centre if `center_crop`; UserError otherwise."""
    check_size((pixels.shape[0], pixels.shape[1]), size, center_crop, name)
    top, left = (pixels.shape[0] - size[0]) // 2, (pixels.shape[1] - size[1]) // 2
    return np.ascontiguousarray(pixels[top : top + size[0], left : left + size[1]])


# Folders


def _open_folder(folder: Path, size: Size, center_crop: bool, classes: Sequence[str]) -> ImageSet:
    flat = _images_in(folder)
    trees = {sub.name: _images_below(sub) for sub in _visible(folder) if sub.is_dir()}
    trees = {name: files for name, files in trees.items() if files}
    if flat and trees:
        raise UserError(f"{folder}: has images beside the subfolder {min(trees)} of images; name one or the other")
    if not flat and not trees:
        raise UserError(f"{folder}: holds no images (files that end in {', '.join(ENDINGS)})")
    labels: list[int] | None
    if flat:
        files = flat
        labels, reason = _labels_file(folder, [file.name for file in files])
    else:
        names = sorted(trees)
        files = [file for name in names for file in trees[name]]
        numbers, reason = _class_numbers(names, classes)
        labels = None if numbers is None else [numbers[name] for name in names for _ in trees[name]]
    shown = [file.relative_to(folder).as_posix() for file in files]
    return ImageSet(str(folder), shown, labels, reason, size, center_crop, files=files)


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(item for item in folder.iterdir() if not item.name.startswith("."))
    except OSError as problem:
        raise UserError(f"{folder}: cannot be read: {problem.strerror}") from None


def _images_in(folder: Path) -> list[Path]:
    return [item for item in _visible(folder) if item.suffix.lower() in ENDINGS and item.is_file()]


def _images_below(folder: Path) -> list[Path]:
    """Images of a class: in its folder and, in path order, in the folders below it."""
    found = _images_in(folder)
    for sub in _visible(folder):
        if sub.is_dir() and not sub.is_symlink():
            found += _images_below(sub)
    return found


def _class_numbers(names: list[str], classes: Sequence[str]) -> tuple[dict[str, int] | None, str]:
    """Class index of each subfolder: by class name if all are, else by order if there is one for each class."""
    if classes and set(names) <= set(classes):
        return {name: list(classes).index(name) for name in names}, ""
    if not classes or len(names) == len(classes):
        return {name: number for number, name in enumerate(names)}, ""
    return None, (
        f"its {len(names)} subfolders (such as {names[0]}) are neither named as the classes nor one for each of "
        f"the {len(classes)} classes"
    )


def _labels_file(folder: Path, names: list[str]) -> tuple[list[int] | None, str]:
    path = folder / LABELS_FILE
    if not path.exists():
        return None, f"there is no {LABELS_FILE} and no subfolder for each class"
    try:
        rows = list(csv.DictReader(io.StringIO(read_plain(path, MAX_LABELS).decode("utf-8"), newline="")))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise UserError(f"{path}: cannot be read: {problem}") from None
    column = next((c for c in LABEL_COLUMNS if rows and c in rows[0]), None)
    if column is None or "file" not in rows[0]:
        raise UserError(f"{path}: must have the columns file and {' or '.join(LABEL_COLUMNS)}")
    labels: dict[str, int] = {}
    for number, row in enumerate(rows, start=2):
        if row["file"] is None:
            raise UserError(f"{path}: row {number} is cut off: it has no file")
        text = row[column] or ""
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise UserError(f"{path}: row {number} has {column} {text[:40]!r}, must be a class index")
        labels[row["file"]] = int(text)
    missing = [name for name in names if name not in labels]
    if missing:
        return None, f"{LABELS_FILE} does not list {missing[0]}"
    return [labels[name] for name in names], ""


# npz


def _open_npz_set(path: Path, size: Size, center_crop: bool) -> ImageSet:
    with _open_npz(str(path)) as archive:
        with _member(archive, str(path), "images") as file:
            shape, dtype = _array_header(file, str(path), "images")
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != size[2] or min(shape) < 1:
            raise UserError(
                f"{path}: images is {dtype} {list(shape)}, must be uint8 [n, {size[0]}, {size[1]}, {size[2]}]"
            )
        if shape[0] > MAX_IMAGES or shape[1] * shape[2] > MAX_PIXELS:
            raise UserError(f"{path}: images is {list(shape)}, more than is ever read")
        check_size((shape[1], shape[2]), size, center_crop, str(path))
        labels: list[int] | None = None
        reason = "it has no array labels"
        if "labels.npy" in archive.namelist():
            labels, reason = _npz_labels(archive, str(path), shape[0]), ""
    names = [f"{path.name}[{i}]" for i in range(shape[0])]
    return ImageSet(str(path), names, labels, reason, size, center_crop)


def _npz_labels(archive: zipfile.ZipFile, path: str, count: int) -> list[int]:
    with _member(archive, path, "labels") as file:
        shape, dtype = _array_header(file, path, "labels")
        if shape != (count,) or dtype.kind not in "iu":
            raise UserError(f"{path}: labels is {dtype} {list(shape)}, must be {count} integers")
        try:
            data = file.read(count * dtype.itemsize)
        except Exception as problem:  # a damaged archive: zlib.error, BadZipFile, EOFError
            raise UserError(f"{path}: labels cannot be read: {one_line(str(problem))}") from None
    if len(data) != count * dtype.itemsize:
        raise UserError(f"{path}: labels is truncated")
    return [int(v) for v in np.frombuffer(data, dtype=dtype)]


def _open_npz(path: str) -> zipfile.ZipFile:
    try:
        with open(path, "rb") as file:  # zipfile would also take an archive behind something else
            if file.read(2) != b"PK":
                raise UserError(f"{path}: is not an npz file")
        return zipfile.ZipFile(path)
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror or problem}") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as problem:
        raise UserError(f"{path}: is not an npz file: {one_line(str(problem))}") from None


def _member(archive: zipfile.ZipFile, path: str, name: str) -> IO[bytes]:
    if f"{name}.npy" not in archive.namelist():
        others = ", ".join(n.removesuffix(".npy") for n in archive.namelist()[:6]) or "nothing"
        raise UserError(f"{path}: has no array {name}; it has {others}")
    try:
        return archive.open(f"{name}.npy")
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as problem:
        raise UserError(f"{path}: {name} cannot be read: {one_line(str(problem))}") from None


def _array_header(file: IO[bytes], path: str, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype from the start of an npy stream, which is then at its data.  Nothing is unpickled."""

    def refuse(problem: object) -> NoReturn:
        raise UserError(f"{path}: {name} is not a plain array: {one_line(str(problem))}")

    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            refuse(f"npy version {version}")
    except UserError:
        raise
    except Exception as problem:  # ValueError, zlib.error, BadZipFile, EOFError
        refuse(problem)
    if fortran and len(shape) > 1:
        refuse("it is in Fortran order")
    if dtype.hasobject:
        refuse("it holds objects")
    return tuple(int(n) for n in shape), dtype
