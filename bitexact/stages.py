"""The float model a stage at a time, its values under the names of the Program's tensors.

    for values in stages(model, images):
        values["layers.0.mixer.scan.h"]          # float32 [n, token, channel, state]

A stage is the embedding, one layer, or what follows the last layer.  Only one is held, so memory is that of a layer
whatever the depth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bitexact.inference import FloatModel, in_threads
from bitexact.vim import Block
from intsim.errors import UserError
from intsim.program import Program

CHUNK = 4  # images of one thread: a layer's values then stay near the caches

Values = dict[str, NDArray[Any]]


def stages(model: FloatModel, images: NDArray[np.uint8], threads: int | None = None) -> Iterator[Values]:
    """Values float32 [n, *shape] by tensor name for each stage, of images uint8 [n, H, W, C].

    The order of tokens is that of the Program: processing order in the backward branch (SPEC section 4).
    """
    vim, middle = model.model, model.cfg.cls_position

    def embed(pixels: NDArray[np.uint8]) -> tuple[Tensor, Values]:
        taps: dict[str, Tensor] = {}
        return vim.embed(model.normalise(pixels), taps), named(taps)

    def layer(block: Block, x: Tensor) -> tuple[Tensor, Values]:
        taps: dict[str, Tensor] = {}
        states: Values = {}

        def keep(name: str, token: int, h: Tensor) -> None:
            if token == 0:
                states[f"{name}.h"] = np.empty((len(h), model.cfg.tokens, *h.shape[1:]), dtype=np.float32)
            states[f"{name}.h"][:, token] = h.numpy()

        return block(x, taps, keep), {**named(taps), **states}

    def head(x: Tensor) -> tuple[Tensor, Values]:
        taps = {"class_token.out": x[:, middle : middle + 1]}
        logits = vim.head_out(x, taps)
        taps["head.out"] = logits[:, None]
        return x, named(taps)

    steps: list[Callable[[Any], tuple[Tensor, Values]]] = [embed]
    steps += [functools.partial(layer, block) for block in vim.blocks]
    parts: list[Any] = [images[i : i + CHUNK] for i in range(0, len(images), CHUNK)]
    for step in [*steps, head]:
        made = in_threads(step, parts, threads)
        parts = [x for x, _ in made]
        yield {name: np.concatenate([values[name] for _, values in made]) for name in made[0][1]}


def named(taps: dict[str, Tensor]) -> Values:
    """Taps of the model as arrays; the residual stream has the bare name of its operator there."""
    found = {}
    for name, value in taps.items():
        bare = name == "tokens" or name.endswith(".residual")
        found[f"{name}.out" if bare else name] = value.numpy()
    return found


def check_same_network(model: FloatModel, program: Program, checkpoint: str) -> None:
    """Raises UserError if the checkpoint's network has not the Program's sizes."""
    cfg = model.cfg
    wanted = {
        "tokens.out": (cfg.tokens, cfg.width),
        "layers.0.mixer.scan.h": (cfg.tokens, cfg.d_inner, cfg.d_state),
        "layers.0.mixer.x_proj.dt": (cfg.tokens, cfg.dt_rank),
        "head.out": (1, cfg.classes),
    }
    depth = sum(op.kind == "scan" for op in program.operators) // 2
    if depth != cfg.depth:
        raise UserError(f"{checkpoint}: has {cfg.depth} layers, the Program has {depth}")
    for name, shape in wanted.items():
        found = program.tensors.get(name)
        if found is None:
            raise UserError(f"{checkpoint}: the Program has no tensor {name} to compare with")
        if found.shape != shape:
            raise UserError(f"{checkpoint}: {name} would be {list(shape)}, in the Program it is {list(found.shape)}")
