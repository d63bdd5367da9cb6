"""Unit vectors: lines of inputs and expected outputs for one arithmetic unit, and the judge of a DUT's answers.

    lines.py   a field, a line, and both directions between integers and hexadecimal text
    draw.py    which inputs: boundary values, mixes, all pairs, whole domains; the counter-based generator
    units.py   the units: their fields, parameters and definitions
    judge.py   reads lines with the DUT's answers appended

`FORMAT.md` section 13 states lines, levels and generator.
"""

UNITS = (
    "requantize",
    "saturate",
    "mac",
    "dot_k",
    "conv4",
    "rom",
    "exp2",
    "rsqrt",
    "rmsnorm",
    "scan_step",
    "gate",
)
