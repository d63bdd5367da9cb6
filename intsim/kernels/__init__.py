"""The Numba kernels: one file for each kind of operator, written from SPEC section 5.

`KERNELS` is the one place to add an operator: its kind, and the class that binds it.
"""

from __future__ import annotations

from intsim.kernels.add import Add
from intsim.kernels.base import Kernel
from intsim.kernels.conv1d import Conv1d
from intsim.kernels.gate import Gate
from intsim.kernels.insert_token import InsertToken
from intsim.kernels.linear import Linear
from intsim.kernels.patch_embed import PatchEmbed
from intsim.kernels.rmsnorm import RmsNorm
from intsim.kernels.rom import Rom
from intsim.kernels.scan import Scan
from intsim.kernels.select_token import SelectToken

KERNELS: dict[str, type[Kernel]] = {
    "patch_embed": PatchEmbed,
    "insert_token": InsertToken,
    "rmsnorm": RmsNorm,
    "linear": Linear,
    "conv1d": Conv1d,
    "rom": Rom,
    "scan": Scan,
    "gate": Gate,
    "add": Add,
    "select_token": SelectToken,
}
