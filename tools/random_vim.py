"""Write a Vim checkpoint of random weights, whose hidden states can be made to spread as trained ones do.

    python tools/random_vim.py --size tiny --state-factors vim_state_factors.npz --out vim_tiny_random.safetensors

Weights start from the official initial statistics. With ``--state-factors`` each scan is then adjusted on a
few smooth random images until max |h| of channel c and state n is about ``r_C[c] * max(r_L) * r_D[n]``, the
factors published for trained models (arXiv 2501.16738): part of a channel's factor goes into delta's bias, the
rest into its convolution; a state's factor goes into its row of B in ``x_proj``. Rows of ``x_proj`` and
columns of ``out_proj`` are rescaled so that delta, B, C and the block's output stay of ordinary size. The
factor file has, for ``tiny`` and ``small``, arrays ``{size}_r_C`` [layer, direction, channel], ``_r_L``
[layer, direction, token] and ``_r_D`` [layer, direction, state]; ``base`` repeats those of ``small``.

Equal arguments give equal weights: the fit runs in float64 and its scales are rounded to 1/64 of an octave.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bitexact.checkpoint import save_checkpoint
from bitexact.vim import Vim, VimConfig

WIDTHS = {"tiny": 192, "small": 384, "base": 768}
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def config(size: str, image: int, patch: int, stride: int, depth: int, classes: int) -> VimConfig:
    """The official shape of a size: d_inner twice the width, 16 states, dt_rank a sixteenth of the width."""
    width = WIDTHS[size]
    return VimConfig(image, image, 3, patch, stride, width, depth, 2 * width, 16, math.ceil(width / 16), 4, classes)


def random_images(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Smooth images of mean 0 and deviation 1 per image: noise at several scales; float64 [count, 3, size, size]."""
    image = torch.zeros(count, 3, size, size, dtype=torch.float64)
    for cells in (2, 4, 8, 16, 32):
        noise = torch.randn(count, 3, cells, cells, generator=generator, dtype=torch.float64)
        image += F.interpolate(noise, size=(size, size), mode="bilinear", align_corners=False) / cells**0.5
    flat = image.flatten(1)
    flat = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)
    return flat.view_as(image)


def load_factors(path: str, size: str, cfg: VimConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets for max |h|: by channel [layer, 2, d_inner] (max r_L included) and by state [layer, 2, d_state]."""
    source = "small" if size == "base" else size
    with np.load(path) as data:
        r_c, r_l, r_d = (torch.from_numpy(data[f"{source}_r_{k}"].astype(np.float64)) for k in "CLD")
    r_c = r_c * r_l.amax(-1, keepdim=True)
    r_c = r_c.repeat(1, 1, -(-cfg.d_inner // r_c.shape[2]))[:, :, : cfg.d_inner]
    layers = torch.arange(cfg.depth) % len(r_c)
    return r_c[layers], r_d[layers]


def _rounded(scale: torch.Tensor) -> torch.Tensor:
    return torch.exp2((torch.log2(scale) * 64).round() / 64)


def _rms(x: torch.Tensor, axes) -> torch.Tensor:
    return x.square().mean(axes).sqrt()


@torch.no_grad()
def fit_block(block, x, r_c, r_d, generator, rounds):
    """Adjust one block in place on the residual stream x [batch, token, width]; returns (output, worst misfits).

    ``r_c`` [2, d_inner] and ``r_d`` [2, d_state] are the targets of the forward and the backward scan. The misfits
    are, in octaves, the median and 99th percentile over channels of how far max |h| is from its target.
    """
    mixer, cfg = block.mixer, block.mixer.cfg
    sides = ("", "_b")
    for side, c in zip(sides, r_c, strict=True):
        dt_proj = getattr(mixer, "dt_proj" + side)
        noise = torch.rand(cfg.d_inner, generator=generator, dtype=torch.float64)
        step = 0.01 * 10 ** (noise - 0.5) * (c / c.log().mean().exp()).sqrt()
        step = step.clamp(1e-4, 0.5)
        dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
    for turn in range(rounds + 1):
        taps, peak = {}, {}

        def watch(name, t, h, peak=peak):
            top = h.abs().amax(0)
            peak[name] = torch.maximum(peak[name], top) if name in peak else top

        block(x, taps, watch)
        misfit = []
        for side, c, d in zip(sides, r_c, r_d, strict=True):
            top = peak[f"{mixer.prefix}.scan{side}"].clamp(min=1e-30)
            by_channel = (c[:, None] * d / top).log2().mean(1)
            misfit.append(by_channel.abs())
            if turn == rounds:
                continue
            conv, x_proj = getattr(mixer, "conv1d" + side), getattr(mixer, "x_proj" + side)
            if turn == 0:  # SiLU grows with its input's scale only where the input is positive
                before = taps[f"{mixer.prefix}.conv1d{side}.out"]
                sign = torch.where(before.amax((0, 1)) < -before.amin((0, 1)), -1.0, 1.0)
                conv.weight.mul_(sign[:, None, None])
                conv.bias.mul_(sign)
                continue
            scale = _rounded(torch.exp2(by_channel - by_channel.mean()).clamp(1 / 64, 64))
            conv.weight.mul_(scale[:, None, None])
            conv.bias.mul_(scale)
            by_state = torch.exp2((c[:, None] * d / top).log2().mean(0))
            rank, state = cfg.dt_rank, cfg.d_state
            low, B, C = x_proj.weight.split([rank, state, state])
            name = f"{mixer.prefix}.x_proj{side}"
            low.mul_(_rounded(1 / _rms(taps[name + ".dt"], (0, 1)))[:, None])
            B.mul_(_rounded(by_state)[:, None])
            C.mul_(_rounded(1 / _rms(taps[name + ".C"], (0, 1)))[:, None])
        if turn == rounds - 1:
            # Half of what separates the gate's channels is taken back in out_proj, within three octaves.
            gate = _rms(taps[f"{mixer.prefix}.gate.out"], (0, 1)).clamp(min=1e-30)
            balance = (gate.log().mean().exp() / gate).sqrt().clamp(1 / 8, 8)
            mixer.out_proj.weight.mul_(_rounded(balance))
    gain = 0.3 * _rms(x, (0, 1, 2)) / _rms(taps[f"{mixer.prefix}.out_proj.out"], (0, 1, 2))
    mixer.out_proj.weight.mul_(_rounded(gain))
    misfit = torch.stack(misfit)
    return block(x), (misfit.median().item(), misfit.quantile(0.99).item())


@torch.no_grad()
def build(cfg: VimConfig, seed: int, factors=None, images: int = 2, rounds: int = 12, report=None) -> dict:
    """A state dict of float64 tensors under the official names; ``factors`` as ``load_factors`` returns them."""
    generator = torch.Generator().manual_seed(seed)
    model = Vim(cfg).double()
    model.reset_parameters(generator)
    if factors is None:
        return model.state_dict()
    x = model.embed(random_images(images, cfg.image_height, generator))
    for index, block in enumerate(model.layers):
        jitter = torch.randn(cfg.width, generator=generator, dtype=torch.float64)
        block.norm.weight.copy_(torch.exp(0.2 * jitter))
        x, misfit = fit_block(block, x, factors[0][index], factors[1][index], generator, rounds)
        if report is not None:
            report(index, misfit, _rms(x, (0, 1, 2)).item())
    return model.state_dict()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=tuple(WIDTHS), default="tiny")
    parser.add_argument("--image", type=int, default=224, help="side in pixels")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state-factors", help="npz of published factors; without it the official initial weights")
    parser.add_argument("--images", type=int, default=2, help="random images to fit the factors on")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of adjustment per block")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--out", required=True, help="the .safetensors to write")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # a scan is many small steps, which threads only slow down
    cfg = config(args.size, args.image, args.patch, args.stride, args.depth, args.classes)
    factors = load_factors(args.state_factors, args.size, cfg) if args.state_factors else None

    def report(index, misfit, rms):
        print(
            f"layer {index}: max |h| of a channel is off by {misfit[0]:.2f} octaves in the median, {misfit[1]:.2f} at "
            f"the 99th percentile; residual rms {rms:.3g}",
            flush=True,
        )

    state = build(cfg, args.seed, factors, args.images, args.rounds, report)
    metadata = {
        "name": f"random Vim-{args.size}",
        "image_size": [args.image, args.image],
        "stride": args.stride,
        "seed": args.seed,
        "state_factors": factors is not None,
    }
    save_checkpoint(args.out, {k: v.float() for k, v in state.items()}, metadata, DTYPES[args.dtype])
    print(json.dumps({"wrote": args.out, **metadata}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
