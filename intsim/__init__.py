"""Integer-only simulator of a quantized Vision Mamba: Program, oracle, Numba engine, width proofs.

The arithmetic is stated, completely, in `intsim/SPEC.md`.  The main entry points:

    from intsim import Program, Engine, embedded
    program = embedded.program()                # the Program that ships with the package
    result = Engine(program).run(images, taps=["layers.0.*"])

Nothing is imported here until it is asked for, so that `import intsim` costs nothing.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
SPEC_VERSION = "1.1"

_HOMES = {
    "Program": "intsim.program",
    "ProgramError": "intsim.errors",
    "UserError": "intsim.errors",
    "Builder": "intsim.builder",
    "Out": "intsim.builder",
    "Engine": "intsim.engine",
    "Oracle": "intsim.oracle",
    "load_program": "intsim.program_file",
    "save_program": "intsim.program_file",
    "embedded": "",
}

__all__ = ["SPEC_VERSION", "__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'intsim' has no attribute {name!r}")
    import importlib

    home = _HOMES[name]
    if not home:
        return importlib.import_module(f"intsim.{name}")
    return getattr(importlib.import_module(home), name)
