"""The model that ships: its size, its ROMs, and every integer of it in three implementations."""

from __future__ import annotations

import numpy as np
import pytest

from intsim import embedded
from intsim.engine import Engine
from intsim.operators.rom import FUNCTIONS
from intsim.oracle import Oracle
from intsim.program import Program
from intsim.roms import exp2_rom, function_rom


@pytest.fixture(scope="module")
def program() -> Program:
    return embedded.program()


def test_it_is_small_enough_to_ship() -> None:
    files = (embedded.checkpoint_path(), embedded.program_path())
    assert sum(path.stat().st_size for path in files) <= 6 << 20


def test_oracle_equals_engine_on_every_tensor(program: Program) -> None:
    images = embedded.images()[0][:8]
    engines = [Engine(program, threads=n).run(images, ["*"]) for n in (1, 2)]
    for i, image in enumerate(images):
        for name, wanted in Oracle(program).run_one(image).items():
            for found in engines:
                assert found[name].dtype == wanted.dtype and np.array_equal(found[name][i], wanted), name


def test_fake_quant_equals_engine_on_every_tensor(program: Program) -> None:
    pytest.importorskip("torch")
    from bitexact.compare import compare

    report = compare(program, embedded.images()[0][8:9], device="cpu")
    assert report.mismatches == 0, report.sentence()
    assert {result.name for result in report.tensors} >= set(program.tensors) - {"image"}


def test_it_recognises_its_images(program: Program) -> None:
    images, labels, _ = embedded.images()
    found = Engine(program).classify(images).argmax(axis=1)
    assert (found == labels).sum() >= 57  # of 64; over all 10,000 test images it is 92.8 %


def test_roms_hold_the_correctly_rounded_functions(program: Program) -> None:
    assert tuple(program.arrays["exp2.rom"].tolist()) == exp2_rom()
    checked = 0
    for op in program.operators:
        if op.kind != "rom":
            continue
        out = program.tensors[op.tensor("out")]
        e_in = program.exponents(op.inputs["x"], "channel")
        e_out = program.exponents(out.name, "channel")
        rom, index = (program.arrays[op.constants[role]] for role in ("rom", "rom_index"))
        function = FUNCTIONS[op.attributes["function"]]
        for r in np.unique(index):
            c = int(np.flatnonzero(index == r)[0])
            wanted = function_rom(function, int(e_in[c]), int(e_out[c]), out.bits, out.signed, program.rounding)
            assert tuple(rom[r].tolist()) == wanted, (op.name, r)
            checked += 1
    assert checked >= 60
