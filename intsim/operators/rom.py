"""SiLU and softplus as 256-entry ROMs, one for each group (SPEC 5.6)."""

from __future__ import annotations

from intsim.arithmetic import Int64
from intsim.operators.base import ConstSpec, Kind, PortSpec, View

FUNCTIONS = ("silu", "softplus")


class Rom(Kind):
    """x [L, E] int8 -> out [L, E]; out = rom[rom_index[c], x + 128]."""

    name = "rom"
    inputs = ("x",)
    outputs = ("out",)
    attributes = ("function",)

    def ports(self, v: View) -> dict[str, PortSpec]:
        x = v.activation("x")
        v.no_groups(x, "token")
        function = FUNCTIONS[v.attribute("function", 0, 1)]
        signed = function == "silu"
        return {"out": PortSpec(("token", "channel"), x.shape, 8, signed=signed, group_axes=("channel",))}

    def given(self, v: View) -> dict[str, ConstSpec]:
        out = v.output("out")
        rom = v.array("rom")
        v.require(rom.ndim == 2 and 1 <= rom.shape[0] <= 16, "rom must be [roms, 256] with 1 to 16 roms")
        index = v.array("rom_index")
        e_in, e_out = v.exponents("x"), v.out_exponents("out")
        if index.shape == e_in.shape:
            for r in sorted(set(index.tolist())):
                exponents = e_in[index == r], e_out[index == r]
                v.require(
                    all(e.min() == e.max() for e in exponents),
                    f"channels of rom {r} differ in input or output exponent",
                )
        return {
            "rom": ConstSpec(("rom", "entry"), (rom.shape[0], 256), out.bits, out.signed),
            "rom_index": ConstSpec(("channel",), (out.shape[1],), 8, False, low=0, high=rom.shape[0] - 1),
        }

    def run(self, v: View, x: dict[str, Int64]) -> dict[str, Int64]:
        return {"out": v.array("rom")[v.array("rom_index")[None, :], x["x"] + 128]}
