"""A plain float Vision Mamba (Vim) in torch, with the parameter names of the official checkpoints.

The model is "bimamba v2" of the Vim paper (arXiv 2401.09417) as its authors trained it:

* patch embedding by a strided convolution; the class token inserted at position ``n_patches // 2``;
  an absolute position embedding added after the insertion;
* ``depth`` blocks ``x = x + mixer(norm(x))`` with RMSNorm (epsilon 1e-5);
* in the mixer two branches share ``in_proj`` and the gate ``z``; the backward branch sees the sequence
  reversed and has its own convolution, projections, A and D (``conv1d_b x_proj_b dt_proj_b A_b_log D_b``);
  the two outputs are averaged ("if_divide_out");
* ``norm_f``, then the row of the class token, then ``head``.

The scan is a Python loop over tokens, with nothing clever: it is the float definition that the rest of
the project is held against. Tensors are ``[batch, token, channel]`` floats, of the parameters' dtype.

Calibration reads intermediate values through ``taps``, a dict that the forward pass fills (detached
tensors, batch first). For a layer N the names are, without the prefix ``layers.N.``::

    norm.out  mixer.in_proj.x  mixer.in_proj.z  mixer.silu_z.out
    mixer.conv1d.out  mixer.silu.out  mixer.x_proj.dt  mixer.x_proj.B  mixer.x_proj.C
    mixer.dt_proj.out (before softplus)  mixer.softplus.out  mixer.scan.y
    mixer.conv1d_b.out  mixer.silu_b.out  mixer.x_proj_b.dt  ...  mixer.scan_b.y
    mixer.gate.out  mixer.out_proj.out  residual (the block's output)

and for the whole model ``patch_embed.proj.out  tokens  norm_f.out  head.out``. Tensors of the backward
branch are in *processing* order: index 0 on the token axis is the last token of the sequence.

A network can be run piece by piece, one layer at a time::

    x = model.embed(images)
    for block in model.layers:
        taps = {}
        x = block(x, taps)
    logits = model.head_out(x)
"""

import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Block", "Mixer", "RMSNorm", "Vim", "VimConfig", "selective_scan"]

Taps = MutableMapping[str, Tensor]


@dataclass(frozen=True)
class VimConfig:
    """Shape of a Vim. All fields are positive integers, save ``eps``.

    Sizes of the image, ``patch`` and ``stride`` are in pixels; ``width`` is the residual stream's
    (``embed_dim`` officially), ``d_inner`` the scan's channel count (officially ``2 * width``).

    Raises ValueError when a field is out of range or the patch is larger than the image.
    """

    image_height: int
    image_width: int
    channels: int
    patch: int
    stride: int
    width: int
    depth: int
    d_inner: int
    d_state: int
    dt_rank: int
    d_conv: int
    classes: int
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "eps":
                if not 0 < value < 1:
                    raise ValueError(f"VimConfig: eps is {value!r}; allowed are floats between 0 and 1")
            elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"VimConfig: {field.name} is {value!r}; allowed are integers from 1 up")
        if self.patch > min(self.image_height, self.image_width):
            raise ValueError(
                f"VimConfig: patch is {self.patch}; allowed are sizes up to the image's shorter side, "
                f"{min(self.image_height, self.image_width)}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (
            (self.image_height - self.patch) // self.stride + 1,
            (self.image_width - self.patch) // self.stride + 1,
        )

    @property
    def n_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def cls_position(self) -> int:
        """Index of the class token in the sequence."""
        return self.n_patches // 2

    @property
    def tokens(self) -> int:
        """Length of the sequence, the class token included."""
        return self.n_patches + 1


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    on_state: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The selective scan, token by token, from a zero state.

    ``h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t``;  ``y_t = sum_n C_t h_t + D u_t``

    Shapes: ``u`` and ``delta`` [batch, token, channel] (delta after softplus), ``A`` [channel, state]
    (negative), ``B`` and ``C`` [batch, token, state], ``D`` [channel]. Returns y [batch, token, channel].
    ``on_state(t, h)`` is called after each update with h [batch, channel, state]; h is not kept.
    Source: Mamba, arXiv 2312.00752, equation 2 with the simplified discretization of B.
    """
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    ys = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        drive = (delta[:, t] * u[:, t])[:, :, None] * B[:, t, None, :]
        h = decay * h + drive
        if on_state is not None:
            on_state(t, h)
        ys.append((h * C[:, t, None, :]).sum(-1) + D * u[:, t])
    return torch.stack(ys, dim=1)


class RMSNorm(nn.Module):
    """``y = x / sqrt(mean(x^2) + eps) * weight`` over the last axis; weight [width]."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Mixer(nn.Module):
    """The bidirectional Mamba mixer ("bimamba v2"), official key names.

    ``in_proj`` rows: d_inner of x, then d_inner of z. ``x_proj`` rows: dt_rank, then d_state of B, then
    d_state of C. ``conv1d.weight`` is [d_inner, 1, d_conv], whose last tap is the present token.
    """

    def __init__(self, cfg: VimConfig, prefix: str = "mixer") -> None:
        super().__init__()
        self.cfg, self.prefix = cfg, prefix
        inner, state = cfg.d_inner, cfg.d_state
        self.in_proj = nn.Linear(cfg.width, 2 * inner, bias=False)
        for suffix in ("", "_b"):
            conv = nn.Conv1d(inner, inner, cfg.d_conv, groups=inner, padding=cfg.d_conv - 1)
            setattr(self, "conv1d" + suffix, conv)
            setattr(self, "x_proj" + suffix, nn.Linear(inner, cfg.dt_rank + 2 * state, bias=False))
            setattr(self, "dt_proj" + suffix, nn.Linear(cfg.dt_rank, inner))
            a_log = torch.arange(1, state + 1, dtype=torch.float32).log().repeat(inner, 1)
            setattr(self, "A" + suffix + "_log", nn.Parameter(a_log))
            setattr(self, "D" + suffix, nn.Parameter(torch.ones(inner)))
        self.out_proj = nn.Linear(inner, cfg.width, bias=False)

    def forward(
        self,
        x: Tensor,
        taps: Taps | None = None,
        on_state: Callable[[str, int, Tensor], None] | None = None,
    ) -> Tensor:
        """Map [batch, token, width] to the same shape; see the module docstring for ``taps``.

        ``on_state(name, t, h)`` has name ``<prefix>.scan`` or ``<prefix>.scan_b``, t in processing order
        and h [batch, d_inner, d_state].
        """
        x, z = self.in_proj(x).split(self.cfg.d_inner, dim=-1)
        silu_z = F.silu(z)
        self._tap(taps, "in_proj.x", x)
        self._tap(taps, "in_proj.z", z)
        self._tap(taps, "silu_z.out", silu_z)
        y = self._branch("", x, taps, on_state)
        y_b = self._branch("_b", x.flip(1), taps, on_state).flip(1)
        gated = (y + y_b) / 2 * silu_z
        self._tap(taps, "gate.out", gated)
        out = self.out_proj(gated)
        self._tap(taps, "out_proj.out", out)
        return out

    def _branch(self, suffix, x, taps, on_state):
        """One direction: convolution, projections and scan; x [batch, token, d_inner] in its own order."""
        cfg = self.cfg
        conv, x_proj, dt_proj = (getattr(self, n + suffix) for n in ("conv1d", "x_proj", "dt_proj"))
        convolved = conv(x.transpose(1, 2))[:, :, : x.shape[1]].transpose(1, 2)
        self._tap(taps, f"conv1d{suffix}.out", convolved)
        u = F.silu(convolved)
        self._tap(taps, f"silu{suffix}.out", u)
        dt, B, C = x_proj(u).split([cfg.dt_rank, cfg.d_state, cfg.d_state], dim=-1)
        for name, value in (("dt", dt), ("B", B), ("C", C)):
            self._tap(taps, f"x_proj{suffix}.{name}", value)
        dt = dt_proj(dt)
        self._tap(taps, f"dt_proj{suffix}.out", dt)
        delta = F.softplus(dt)
        self._tap(taps, f"softplus{suffix}.out", delta)
        A = -torch.exp(getattr(self, f"A{suffix}_log"))
        hook = None
        if on_state is not None:
            name = f"{self.prefix}.scan{suffix}"

            def hook(t, h):
                on_state(name, t, h)

        y = selective_scan(u, delta, A, B, C, getattr(self, "D" + suffix), hook)
        self._tap(taps, f"scan{suffix}.y", y)
        return y

    def _tap(self, taps, name, value):
        if taps is not None:
            taps[f"{self.prefix}.{name}"] = value.detach()


class Block(nn.Module):
    """``x + mixer(norm(x))``; layer number ``index`` gives the taps their prefix ``layers.N``."""

    def __init__(self, cfg: VimConfig, index: int = 0) -> None:
        super().__init__()
        self.prefix = f"layers.{index}"
        self.norm = RMSNorm(cfg.width, cfg.eps)
        self.mixer = Mixer(cfg, f"{self.prefix}.mixer")

    def forward(
        self,
        x: Tensor,
        taps: Taps | None = None,
        on_state: Callable[[str, int, Tensor], None] | None = None,
    ) -> Tensor:
        """Map the residual stream [batch, token, width] to its next value, of the same shape."""
        normed = self.norm(x)
        if taps is not None:
            taps[f"{self.prefix}.norm.out"] = normed.detach()
        x = x + self.mixer(normed, taps, on_state)
        if taps is not None:
            taps[f"{self.prefix}.residual"] = x.detach()
        return x


class _PatchEmbed(nn.Module):
    """Holds ``proj`` so that its keys are the official ``patch_embed.proj.*``."""

    def __init__(self, cfg: VimConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(cfg.channels, cfg.width, cfg.patch, cfg.stride)


class Vim(nn.Module):
    """Vision Mamba for classification; ``Vim(cfg).load_state_dict(state)`` takes official keys strictly.

    A new model has the official initial weights, drawn from torch's global generator.
    """

    def __init__(self, cfg: VimConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.patch_embed = _PatchEmbed(cfg)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, cfg.tokens, cfg.width))
        self.layers = nn.ModuleList(Block(cfg, i) for i in range(cfg.depth))
        self.norm_f = RMSNorm(cfg.width, cfg.eps)
        self.head = nn.Linear(cfg.width, cfg.classes)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the official initial weights from ``generator`` (default: torch's global one).

        Delta's bias is the inverse softplus of a log-uniform step in [0.001, 0.1]; A is -1..-d_state;
        D is 1; ``out_proj`` is divided by sqrt(depth); tokens, positions and head have deviation 0.02.
        """
        cfg, g = self.cfg, generator

        def fan_in_uniform(weight, fan_in, gain=1.0):
            weight.uniform_(-gain / math.sqrt(fan_in), gain / math.sqrt(fan_in), generator=g)

        fan_in = cfg.channels * cfg.patch**2
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=fan_in**-0.5, generator=g)
        for bias in (self.patch_embed.proj.bias, self.head.bias):
            assert bias is not None
            bias.zero_()
        nn.init.trunc_normal_(self.cls_token, std=0.02, generator=g)
        nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=g)
        nn.init.trunc_normal_(self.head.weight, std=0.02, generator=g)
        self.norm_f.weight.fill_(1)
        for block in self.blocks:
            block.norm.weight.fill_(1)
            mixer = block.mixer
            fan_in_uniform(mixer.in_proj.weight, cfg.width)
            fan_in_uniform(mixer.out_proj.weight, cfg.d_inner, cfg.depth**-0.5)
            for suffix in ("", "_b"):
                conv, x_proj, dt_proj = (getattr(mixer, n + suffix) for n in ("conv1d", "x_proj", "dt_proj"))
                fan_in_uniform(conv.weight, cfg.d_conv)
                fan_in_uniform(conv.bias, cfg.d_conv)
                fan_in_uniform(x_proj.weight, cfg.d_inner)
                fan_in_uniform(dt_proj.weight, cfg.dt_rank)
                step = torch.rand(cfg.d_inner, generator=g)
                step = torch.exp(step * math.log(100.0) + math.log(1e-3)).clamp(min=1e-4)
                dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))
                a_log = torch.arange(1, cfg.d_state + 1, dtype=torch.float32).log()
                getattr(mixer, f"A{suffix}_log").copy_(a_log.expand(cfg.d_inner, -1))
                getattr(mixer, "D" + suffix).fill_(1)

    @property
    def blocks(self) -> list[Block]:
        """The layers, in order."""
        return [block for block in self.layers if isinstance(block, Block)]

    def embed(self, images: Tensor, taps: Taps | None = None) -> Tensor:
        """Normalised images [batch, channels, height, width] to tokens [batch, tokens, width].

        Raises ValueError when the images are not of the configured size.
        """
        cfg = self.cfg
        expected = (cfg.channels, cfg.image_height, cfg.image_width)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"Vim.embed: images have shape {list(images.shape)}; allowed is [batch, {expected[0]}, "
                f"{expected[1]}, {expected[2]}]"
            )
        patches = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(len(patches), -1, -1)
        middle = cfg.cls_position
        tokens = torch.cat([patches[:, :middle], cls, patches[:, middle:]], dim=1) + self.pos_embed
        if taps is not None:
            taps["patch_embed.proj.out"] = patches.detach()
            taps["tokens"] = tokens.detach()
        return tokens

    def head_out(self, x: Tensor, taps: Taps | None = None) -> Tensor:
        """Residual stream [batch, tokens, width] after the last block to logits [batch, classes]."""
        middle = self.cfg.cls_position
        normed = self.norm_f(x[:, middle : middle + 1])
        logits = self.head(normed[:, 0])
        if taps is not None:
            taps["norm_f.out"] = normed.detach()
            taps["head.out"] = logits.detach()
        return logits

    def forward(self, images: Tensor, taps: Taps | None = None) -> Tensor:
        """Normalised images [batch, channels, height, width] to logits [batch, classes]."""
        x = self.embed(images, taps)
        for block in self.blocks:
            x = block(x, taps)
        return self.head_out(x, taps)
