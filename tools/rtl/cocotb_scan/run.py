"""Builds scan_pe.sv under Icarus and runs test_scan_pe.py: run.py BUNDLE BUILD LAYER [CHANNELS]."""

from __future__ import annotations

import sys
from pathlib import Path

from cocotb_tools.runner import get_results, get_runner

from intsim.arithmetic import ROUNDINGS
from intsim.program_file import load_program

HERE = Path(__file__).resolve().parent


def main(bundle: str, build: str, layer: str, channels: str = "16") -> int:
    program = load_program(Path(bundle) / "program.safetensors")
    scan = program.operator(f"layers.{layer}.mixer.scan")
    h, y = (program.tensors[scan.tensor(port)] for port in ("h", "y"))
    parameters = {
        "N": h.shape[2],
        "STATE_BITS": h.bits,
        "M": scan.attributes["abar_fraction"],
        "D_BITS": program.constants[scan.constants["D"]].bits,
        "Y_BITS": y.bits,
        "ROUNDING": ROUNDINGS.index(program.rounding),
        "ROM_FILE": f'"{bundle}/constants/exp2.rom.hex"',
    }
    runner = get_runner("icarus")
    runner.build(
        sources=sorted((HERE.parent / "rtl").glob("*.sv")),
        hdl_toplevel="scan_pe",
        parameters=parameters,
        build_dir=build,
        always=True,
        timescale=("1ns", "1ps"),
    )
    results = runner.test(
        test_module="test_scan_pe",
        hdl_toplevel="scan_pe",
        test_dir=build,
        results_xml=str(Path(build).resolve() / "results.xml"),
        extra_env={"BUNDLE": bundle, "LAYER": layer, "CHANNELS": channels, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    count, failed = get_results(results)
    print(f"{count} cocotb tests on {channels} channels, {failed} failed")
    return 1 if failed or not count else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
