"""Reading and writing Vim checkpoints: official ``.pth`` files and ``.safetensors``.

A checkpoint is never trusted. A ``.pth`` is read with ``torch.load(weights_only=True)`` alone, so a
pickle that asks for code is refused and not run; every key and shape is checked against the
architecture that the shapes themselves imply; weights that are not finite are refused.

Two properties of the architecture leave no trace in the shapes and are assumed, as in the published
models: the two directions are averaged ("if_divide_out") and the class token sits in the middle.
"""

import argparse
import json
import math
import mmap
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, cast

import safetensors
import safetensors.torch
import torch

from bitexact.vim import VimConfig
from intsim.errors import UserError
from intsim.files import write_atomically
from intsim.program_file import one_line

__all__ = ["CheckpointError", "load_checkpoint", "read_metadata", "save_checkpoint"]

_DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
_METADATA_KEY = "vim"
_LAYER = re.compile(r"layers\.(\d{1,18})\.")
_MAX_FILE = 8 << 30
_MAX_SIDE = 65536  # of an image, in pixels


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be used; the message names the file, the key, the value and what is allowed.

    One printable line, whatever keys and values the file has.
    """

    def __init__(self, message: str):
        super().__init__(one_line(message))


def load_checkpoint(
    path: str | os.PathLike, image_size: int | tuple[int, int] | None = None
) -> tuple[VimConfig, dict[str, torch.Tensor]]:
    """Read a Vim checkpoint and infer its architecture.

    ``path`` is an official ``.pth`` (or ``.pt``, ``.bin``, ``.ckpt``) or a ``.safetensors`` file, of float16,
    bfloat16 or float32, bare or under ``model`` or ``state_dict``, with or without the prefix ``module.``.
    ``image_size`` is a side or (height, width) in pixels; it decides the stride (the patch size where that
    gives the right token count). Without it the file's own metadata is used (``image_size`` and ``stride``),
    else a square grid of patches that do not overlap is assumed.

    Returns the configuration and the state, float32 tensors on the CPU under the official names, fit for
    ``Vim(cfg).load_state_dict(state)``. Raises CheckpointError.
    """
    name = os.fspath(path)
    state, metadata = _read(name)
    state = _unwrap(name, state)
    _check_sizes(name, state)
    cfg = _infer(name, state, metadata, image_size)
    return cfg, _checked(name, state, cfg)


def read_metadata(path: str | os.PathLike) -> dict:
    """The metadata that ``save_checkpoint`` wrote, {} where there is none (always for a ``.pth``).

    Raises CheckpointError when a ``.safetensors`` file cannot be read.
    """
    name = os.fspath(path)
    if not _is_safetensors(name):
        return {}
    _check_file(name)
    with _open_safetensors(name) as file:
        return _parse_metadata(name, file.metadata())


def save_checkpoint(
    path: str | os.PathLike,
    state: Mapping[str, torch.Tensor],
    metadata: Mapping | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write ``state`` to a ``.safetensors`` file, each tensor rounded to ``dtype``.

    ``metadata`` (anything JSON can hold; ``image_size`` as [height, width] and ``stride`` are understood by
    ``load_checkpoint``) is stored as one JSON string, so that equal arguments give equal bytes. The file is
    written under a temporary name in the same folder and then renamed. Raises CheckpointError when a value
    is not finite in ``dtype``, or ``dtype`` is none of float16, bfloat16 and float32; UserError when the file
    cannot be written.
    """
    name = os.fspath(path)
    if dtype not in _DTYPES:
        raise CheckpointError(f"{name}: dtype is {dtype}; allowed are float16, bfloat16 and float32")
    tensors = {}
    for key in sorted(state):
        tensor = state[key].detach().cpu().to(dtype).contiguous().clone()
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name}: key '{key}' has values that are not finite as {_DTYPES[dtype]}")
        tensors[key] = tensor
    text = None
    if metadata is not None:
        text = {_METADATA_KEY: json.dumps(metadata, sort_keys=True, allow_nan=False)}
    write_atomically(Path(name), safetensors.torch.save(tensors, text))


# Reading files


def _is_safetensors(name: str) -> bool:
    return name.lower().endswith(".safetensors")


def _read(name: str) -> tuple[object, dict]:
    """Whatever the file holds (for a ``.pth`` any object), and its metadata."""
    _check_file(name)
    if _is_safetensors(name):
        with _open_safetensors(name) as file:
            metadata = _parse_metadata(name, file.metadata())
            try:
                return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
            except Exception as error:
                raise CheckpointError(f"{name}: cannot read the tensors: {_line(error)}") from None
    _check_archive(name)
    try:
        # Namespace is plain data: official training checkpoints keep their arguments in one.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd pickle protocols; what follows decides
            with open(name, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                # mapped: a length that the pickle states allocates no more than the file has
                return torch.load(cast(IO[bytes], data), map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise CheckpointError(
                f"{name}: the pickle asks for '{asked.group(1)[:80]}', which could run code; allowed are tensors and "
                f"plain containers"
            ) from None
        raise CheckpointError(
            f"{name}: not a torch checkpoint of tensors and plain containers, or a damaged one"
        ) from None
    except Exception as error:  # torch raises many kinds for damaged files
        kind = type(error).__name__
        raise CheckpointError(f"{name}: not a torch checkpoint, or a damaged one ({kind}: {_line(error)})") from None


def _check_file(name: str) -> None:
    if not os.path.exists(name):
        raise CheckpointError(f"{name}: no such file")
    if os.path.isdir(name):
        raise CheckpointError(f"{name}: is a folder; allowed is a .pth or .safetensors file")
    if not os.path.isfile(name):  # a device or a pipe may never end
        raise CheckpointError(f"{name}: is no regular file; allowed is a .pth or .safetensors file")
    if os.path.getsize(name) > _MAX_FILE:
        raise CheckpointError(f"{name}: has {os.path.getsize(name)} bytes; allowed are up to {_MAX_FILE}")


def _check_archive(name: str) -> None:
    """Holds the parts of a zip archive, which a ``.pth`` is since torch 1.6, against its checksums: torch does not.

    Parts are stored as they are; a compressed one, or more bytes of parts than of file, is refused unread.
    """
    try:
        if not zipfile.is_zipfile(name):
            return  # of the older kind, without checksums
        with zipfile.ZipFile(name) as archive:
            parts = archive.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise CheckpointError(f"{name}: has compressed parts; allowed are archives as torch writes them")
            if sum(part.file_size for part in parts) > os.path.getsize(name):
                raise CheckpointError(f"{name}: its parts are longer than the file")
            damaged = archive.testzip()
    except CheckpointError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged files
        raise CheckpointError(f"{name}: not a torch checkpoint, or a damaged one ({_line(error)})") from None
    if damaged is not None:
        raise CheckpointError(f"{name}: its part '{damaged}' is damaged: it has not its checksum")


def _open_safetensors(name: str):
    try:
        return safetensors.safe_open(name, framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{name}: no such file") from None
    except Exception as error:
        raise CheckpointError(f"{name}: not a safetensors file, or a damaged one: {_line(error)}") from None


def _parse_metadata(name: str, raw: dict[str, str] | None) -> dict:
    """Metadata of any writer as a dict: our JSON object, else each value that is JSON parsed as such."""
    raw = raw or {}
    if _METADATA_KEY in raw:
        try:
            value = json.loads(raw[_METADATA_KEY])
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{name}: metadata '{_METADATA_KEY}' is not JSON: {_line(error)}") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{name}: metadata '{_METADATA_KEY}' is {value!r}; allowed is a JSON object")
        return value
    parsed = {}
    for key, value in raw.items():
        try:
            parsed[key] = json.loads(value)
        except (ValueError, RecursionError):
            parsed[key] = value
    return parsed


def _line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0][:200]


# From a file's contents to a checked state


def _unwrap(name: str, state: object) -> dict[str, torch.Tensor]:
    """The flat state: the wrapper and the prefix ``module.`` removed."""
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        what = "an empty mapping" if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise CheckpointError(f"{name}: holds {what}; allowed is a mapping of names to tensors")
    if all(isinstance(key, str) and key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{name}: key {key!r} holds a {type(value).__name__}; allowed are tensors")
    return dict(state)


def _check_sizes(name: str, state: dict[str, torch.Tensor]) -> None:
    """Refuses tensors that repeat what the file holds (a stride of 0, one storage many times): copies would be huge."""
    size, total = os.path.getsize(name), 0
    for key, tensor in state.items():
        total += tensor.numel() * tensor.element_size()
        if total > size:
            raise CheckpointError(
                f"{name}: key '{key}' has shape {list(tensor.shape)}; allowed are tensors of together no more than the "
                f"{size} bytes of the file"
            )


def _infer(name: str, state: dict[str, torch.Tensor], metadata: dict, image_size) -> VimConfig:
    """The configuration that the shapes imply; only the keys it reads are checked here."""
    if "layers.0.mixer.in_proj.weight" not in state:
        raise CheckpointError(
            f"{name}: key 'layers.0.mixer.in_proj.weight' is missing, so this is no Vision Mamba (bimamba v2) "
            f"checkpoint; it has keys such as '{sorted(state)[0]}'"
        )

    def shape(key: str, axes: str) -> tuple[int, ...]:
        if key not in state:
            raise CheckpointError(f"{name}: key '{key}' is missing")
        found = tuple(state[key].shape)
        if len(found) != axes.count(",") + 1 or 0 in found:
            raise CheckpointError(f"{name}: key '{key}' has shape {list(found)}; allowed is [{axes}]")
        return found

    width, channels, patch, _ = shape("patch_embed.proj.weight", "width, channels, patch, patch")
    in_rows, _ = shape("layers.0.mixer.in_proj.weight", "2 d_inner, width")
    if in_rows % 2:
        raise CheckpointError(
            f"{name}: key 'layers.0.mixer.in_proj.weight' has {in_rows} rows; allowed is an even number"
        )
    _, d_state = shape("layers.0.mixer.A_log", "d_inner, d_state")
    _, dt_rank = shape("layers.0.mixer.dt_proj.weight", "d_inner, dt_rank")
    _, _, d_conv = shape("layers.0.mixer.conv1d.weight", "d_inner, 1, d_conv")
    classes, _ = shape("head.weight", "classes, width")
    _, tokens, _ = shape("pos_embed", "1, tokens, width")
    layers = {int(found.group(1)) for key in state if (found := _LAYER.match(key))}
    for index in range(len(layers)):
        if index not in layers:
            raise CheckpointError(
                f"{name}: key 'layers.{index}.norm.weight' is missing, though there is a layer {max(layers)}"
            )
    height, breadth, stride = _geometry(name, metadata, image_size, patch, tokens)
    return VimConfig(
        image_height=height,
        image_width=breadth,
        channels=channels,
        patch=patch,
        stride=stride,
        width=width,
        depth=len(layers),
        d_inner=in_rows // 2,
        d_state=d_state,
        dt_rank=dt_rank,
        d_conv=d_conv,
        classes=classes,
        eps=1e-5,
    )


def _geometry(name: str, metadata: dict, image_size, patch: int, tokens: int) -> tuple[int, int, int]:
    """Image height, width and stride that give ``tokens`` tokens, the class token included."""
    n_patches = tokens - 1
    if n_patches < 1:
        raise CheckpointError(f"{name}: key 'pos_embed' has {tokens} token; allowed are 2 or more")
    where = "image_size"
    wanted_stride = None
    if image_size is None and metadata.get("image_size") is not None:
        image_size, where = metadata["image_size"], "metadata 'image_size'"
    if metadata.get("stride") is not None:
        wanted_stride = metadata["stride"]
        if not _is_count(wanted_stride):
            raise CheckpointError(
                f"{name}: metadata 'stride' is {wanted_stride!r}; allowed are integers 1 .. {_MAX_SIDE}"
            )
    if image_size is None:
        side = math.isqrt(n_patches)
        if side * side != n_patches:
            raise CheckpointError(
                f"{name}: key 'pos_embed' has {tokens} tokens, which is no square grid and a class token; "
                f"an image size is needed"
            )
        stride = wanted_stride or patch
        size = (side - 1) * stride + patch
        return size, size, stride
    pair = (image_size, image_size) if _is_count(image_size) else image_size
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(_is_count(side) for side in pair):
        raise CheckpointError(
            f"{name}: {where} is {image_size!r}; allowed are an integer 1 .. {_MAX_SIDE} or a pair (height, width)"
        )
    height, breadth = pair
    if patch > min(height, breadth):
        raise CheckpointError(
            f"{name}: {where} is {height} x {breadth}; allowed are sides from the patch size, {patch}, up"
        )

    def fits(stride: int) -> bool:
        return ((height - patch) // stride + 1) * ((breadth - patch) // stride + 1) == n_patches

    longest = max(height, breadth) - patch + 1
    strides = [stride for stride in range(1, longest + 1) if fits(stride)]
    if not strides:
        raise CheckpointError(
            f"{name}: key 'pos_embed' has {tokens} tokens, which no stride gives for an image of {height} x "
            f"{breadth} and patches of {patch}"
        )
    # The recorded stride, else no overlap, else one that uses the image to its edge, else the largest.
    if wanted_stride in strides:
        return height, breadth, wanted_stride
    if patch in strides:
        return height, breadth, patch
    exact = [s for s in strides if (height - patch) % s == 0 and (breadth - patch) % s == 0]
    return height, breadth, max(exact or strides)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_SIDE


def _shapes(cfg: VimConfig) -> dict[str, tuple[int, ...]]:
    """Every official key with its shape."""
    inner = cfg.d_inner
    shapes = {
        "cls_token": (1, 1, cfg.width),
        "pos_embed": (1, cfg.tokens, cfg.width),
        "patch_embed.proj.weight": (cfg.width, cfg.channels, cfg.patch, cfg.patch),
        "patch_embed.proj.bias": (cfg.width,),
        "norm_f.weight": (cfg.width,),
        "head.weight": (cfg.classes, cfg.width),
        "head.bias": (cfg.classes,),
    }
    for index in range(cfg.depth):
        layer = f"layers.{index}."
        shapes[layer + "norm.weight"] = (cfg.width,)
        shapes[layer + "mixer.in_proj.weight"] = (2 * inner, cfg.width)
        shapes[layer + "mixer.out_proj.weight"] = (cfg.width, inner)
        for suffix in ("", "_b"):
            shapes[layer + f"mixer.conv1d{suffix}.weight"] = (inner, 1, cfg.d_conv)
            shapes[layer + f"mixer.conv1d{suffix}.bias"] = (inner,)
            shapes[layer + f"mixer.x_proj{suffix}.weight"] = (cfg.dt_rank + 2 * cfg.d_state, inner)
            shapes[layer + f"mixer.dt_proj{suffix}.weight"] = (inner, cfg.dt_rank)
            shapes[layer + f"mixer.dt_proj{suffix}.bias"] = (inner,)
            shapes[layer + f"mixer.A{suffix}_log"] = (inner, cfg.d_state)
            shapes[layer + f"mixer.D{suffix}"] = (inner,)
    return shapes


def _checked(name: str, state: dict[str, torch.Tensor], cfg: VimConfig) -> dict[str, torch.Tensor]:
    """The state as float32 in the official order, every key, shape, dtype and value checked."""
    shapes = _shapes(cfg)
    for key in shapes:
        if key not in state:
            raise CheckpointError(f"{name}: key '{key}' is missing")
    for key in state:
        if key not in shapes:
            raise CheckpointError(f"{name}: key '{key}' is left over; this Vision Mamba has no such parameter")
    checked = {}
    for key, shape in shapes.items():
        tensor = state[key]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{name}: key '{key}' has shape {list(tensor.shape)}; allowed is {list(shape)}")
        if tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
            raise CheckpointError(
                f"{name}: key '{key}' has dtype {tensor.dtype} and layout {tensor.layout}; allowed are dense "
                f"float16, bfloat16 and float32"
            )
        tensor = tensor.detach().to(torch.float32).contiguous().clone()
        bad = (~torch.isfinite(tensor)).sum().item()
        if bad:
            raise CheckpointError(
                f"{name}: key '{key}' has {bad} of {tensor.numel()} values NaN or infinite; allowed are finite values"
            )
        checked[key] = tensor
    return checked
