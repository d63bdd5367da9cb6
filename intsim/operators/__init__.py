"""One file per operator: what it requires, what follows from that, its width proof, and its readable definition.

Each `Kind` is written to be read beside SPEC.md section 5.  `run` is the oracle: NumPy int64, one image, no tricks.
To add an operator: a section in SPEC.md, a file here, its kernel in `intsim/kernels`, its torch twin in `bitexact`.
"""

from intsim.operators.add import Add
from intsim.operators.base import Kind, View
from intsim.operators.conv1d import Conv1d
from intsim.operators.gate import Gate
from intsim.operators.insert_token import InsertToken
from intsim.operators.linear import Linear
from intsim.operators.patch_embed import PatchEmbed
from intsim.operators.rmsnorm import RmsNorm
from intsim.operators.rom import Rom
from intsim.operators.scan import Scan
from intsim.operators.select_token import SelectToken

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        PatchEmbed(),
        InsertToken(),
        RmsNorm(),
        Linear(),
        Conv1d(),
        Rom(),
        Scan(),
        Gate(),
        Add(),
        SelectToken(),
    )
}

__all__ = ["KINDS", "Kind", "View"]
