"""No step of a run uses floating point: in the data, in the source, in the values while it runs, in what it imports."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import intsim
from intsim import save_program
from intsim.arithmetic import ROUNDINGS
from intsim.oracle import Oracle
from intsim.synthetic import Size, random_program

HOME = Path(intsim.__file__).parent
OFFLINE = {"roms.py", "synthetic.py"}  # they make Programs; a run never imports them, as the last test shows
SOURCES = sorted(p for p in HOME.rglob("*.py") if p.relative_to(HOME).as_posix() not in OFFLINE)
INEXACT = {"torch", "mpmath", "cmath", "decimal", "scipy", "random"}
TYPES = {"float", "complex"}  # as bare names
MEMBERS = {  # as attributes of anything, or imported by name
    "float16", "float32", "float64", "float128", "longdouble", "double", "single", "half", "complex64", "complex128",
    "inexact", "floating", "sqrt", "cbrt", "exp", "exp2", "expm1", "log", "log2", "log1p", "log10", "divide", "pow",
    "true_divide", "mean", "average", "std", "var", "rint", "linspace", "reciprocal", "ldexp", "fsum", "fromhex",
}  # fmt: skip
DTYPE = re.compile(r"(float|complex)\d|^[<>=|]?[fc]\d+$|^[<>=|]+[fdgc]$")  # as text
ALLOWED = {  # (file, code): why it computes nothing
    ("program_file.py", "float"): "the type of a number in the free text of the provenance",
    ("embedded/__init__.py", "images_path() / name"): "joins a path",
    ("operators/scan.py", "intsim.operators.exp2: exp2"): "the integer one",
    ("kernels/scan/lanes.py", "intsim.kernels.exp2: exp2"): "the integer one",
    ("kernels/scan/traced.py", "intsim.kernels.exp2: exp2"): "the integer one",
    ("kernels/cache.py", "0.05"): "seconds to sleep",
    ("kernels/narrow.py", "intsim.kernels.exp2: exp2"): "the integer one",
    ("widths/recurrence.py", "intsim.operators.exp2: exp2"): "the integer one",
}


def small(mode: str = "half_up") -> Any:
    return random_program(3, Size(depth=1), rounding=mode, extreme=0.2)


def offences(path: Path) -> list[str]:
    """Every use of a float in a source file: literals, true division, types, functions, dtypes as text, imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    where = path.relative_to(HOME).as_posix()
    found: list[str] = []
    words: set[int] = set()  # annotations (how they end is no step of a run) and docstrings
    for node in ast.walk(tree):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        words |= {id(inner) for part in parts if part is not None for inner in ast.walk(part)}
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            words.add(id(node.value))

    def offence(node: ast.AST, code: str) -> None:
        if id(node) not in words and (where, code) not in ALLOWED:
            found.append(f"{where}:{getattr(node, 'lineno', 0)}: {code}")

    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            if isinstance(node.value, (float, complex)) or (isinstance(node.value, str) and DTYPE.search(node.value)):
                offence(node, ast.unparse(node))
        elif isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.Div):
            right = node.right if isinstance(node, ast.BinOp) else node.value
            if not isinstance(right, ast.JoinedStr) and not isinstance(getattr(right, "value", None), str):
                offence(node, ast.unparse(node))  # not a path and the name of a file
        elif isinstance(node, ast.Name) and node.id in TYPES:
            offence(node, node.id)
        elif isinstance(node, ast.Attribute) and node.attr in MEMBERS:
            offence(node, ast.unparse(node))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None)
            for alias in node.names:
                if (module or alias.name).split(".")[0] in INEXACT or (module and alias.name in MEMBERS):
                    offence(node, f"{module}: {alias.name}" if module else alias.name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(HOME).as_posix())
def test_source_has_no_float(path: Path) -> None:
    assert not offences(path)


def test_the_scan_of_the_source_finds_floats() -> None:
    """roms.py and synthetic.py use floats (or mpmath), so a scan that finds nothing there is broken."""
    for name in OFFLINE:
        assert offences(HOME / name)
    assert len(SOURCES) >= 20


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_no_array_of_a_program_or_a_run_is_floating(mode: str) -> None:
    program = small(mode)
    for name, array in program.arrays.items():
        assert array.dtype.kind in "iu", name
    image = np.random.default_rng(0).integers(0, 256, program.image, dtype=np.uint8)
    for name, array in Oracle(program).run_one(image).items():
        assert array.dtype.kind in "iu" and array.dtype == program.tensors[name].dtype, name


@pytest.mark.parametrize("mode", ROUNDINGS)
def test_no_local_value_of_a_run_is_floating(mode: str) -> None:
    """Every local variable and return value of intsim's own functions, after every line of a run."""
    program = small(mode)
    oracle = Oracle(program)
    image = np.random.default_rng(0).integers(0, 256, program.image, dtype=np.uint8)
    lines = 0

    def floating(value: object, depth: int = 0) -> bool:
        if isinstance(value, (float, complex, np.inexact)):
            return True
        if isinstance(value, np.ndarray):
            return value.dtype.kind not in "iub"
        if isinstance(value, dict) and depth < 2:
            return any(floating(v, depth + 1) for v in value.values())
        if isinstance(value, (list, tuple)) and depth < 2:
            return any(floating(v, depth + 1) for v in value)
        return False

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(str(HOME)):
            return None
        if event in ("line", "return"):
            lines += 1
            assert not floating(argument), f"{frame.f_code.co_qualname} returns {argument!r}"
            for name, value in frame.f_locals.items():
                assert not floating(value), f"{frame.f_code.co_qualname}, line {frame.f_lineno}: {name}"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        oracle.run_one(image)
    finally:
        sys.settrace(before)
    assert lines > 3000


def test_a_run_imports_nothing_that_computes_in_float(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    digest = save_program(small(), path)
    code = (
        "import sys, numpy as np\n"
        "from intsim import Oracle, load_program\n"
        "program = load_program(sys.argv[1])\n"
        "Oracle(program).run(np.zeros((1, *program.image), np.uint8), ['*'])\n"
        "print(program.digest)\n"
        "for name in sys.modules: print(name)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(HOME.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    stated, *modules = done.stdout.split()
    assert stated == digest
    loaded = set(modules)
    assert "intsim.oracle" in loaded
    assert not loaded & {"intsim.roms", "intsim.synthetic", "mpmath", "torch", "bitexact", "scipy", "sympy"}
