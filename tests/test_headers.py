"""`intsim headers`: what the SystemVerilog package and the C header say is what the Program says, in real tools too."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from golden.cli import cli
from golden.headers import c_header, sv_package, write_headers
from intsim import embedded
from intsim.arithmetic import bits_needed
from intsim.errors import UserError
from intsim.program_file import program_bytes
from intsim.synthetic import Size, random_program
from intsim.validate import check_operator


@pytest.fixture(scope="module")
def program():
    made = random_program(5, Size(depth=2), state_bits=16)
    program_bytes(made)  # sets its hash
    return made


def read_sv(text):
    """name -> int, text or list of unsigned 8-bit integers, by regular expressions."""
    found = {}
    for name, value in re.findall(r"localparam (?:int|longint) (\w+) = (.*?);", text):
        found[name] = int(value.replace("64'sd", ""))
    found |= dict(re.findall(r'localparam (\w+) = "(.*?)";', text))
    for width, name, body in re.findall(r"localparam logic \[(\d+):0\] (\w+) = \{(.*?)\};", text, re.DOTALL):
        digits = "".join(re.findall(r"'h([0-9a-f]+)", body))
        sizes = [int(n) for n in re.findall(r"(\d+)'h", body)]
        assert sum(sizes) == int(width) + 1 == 4 * len(digits)
        found[name] = list(bytes.fromhex(digits)[::-1])
    return found


def read_c(text):
    numbers = re.findall(r"#define INTSIM_(\w+) \(?(-?\d+)(?:LL)?\)?(?: /\*|\n)", text)
    found = {name: int(value) for name, value in numbers}
    found |= dict(re.findall(r'#define INTSIM_(\w+) "(.*?)"', text))
    tables = re.findall(r"const (u?int8)_t INTSIM_(\w+)\[(\d+)\] = \{(.*?)\};", text, re.DOTALL)
    for kind, name, length, body in tables:
        values = [int(v) for v in re.sub(r"/\*.*?\*/", "", body).split(",")]
        assert len(values) == int(length) and (kind == "int8" or min(values) >= 0)
        found[name] = [v & 255 for v in values]
    return found


def test_both_say_what_the_program_says(program):
    said = read_sv(sv_package(program))
    assert said == read_c(c_header(program)) and len(said) > 1000
    assert said["PROGRAM_SHA256"] == program.digest and said["SPEC_VERSION"] == program.spec
    height, width, channels = program.image
    wanted = {"IMAGE_HEIGHT": height, "IMAGE_WIDTH": width, "IMAGE_CHANNELS": channels, "DEPTH": 2, "WIDTH": 8}
    wanted |= {"PATCHES": 4, "TOKENS": 5, "CLASS_TOKEN": 2, "INNER": 16, "STATES": 4, "DT_RANK": 2, "CONV_TAPS": 4}
    wanted |= {"PATCH": 4, "STRIDE": 4, "CLASSES": 3, "STATE_BITS": 16, "RESIDUAL_BITS": 16, "ACCUMULATOR_BITS": 32}
    wanted |= {"ABAR_FRACTION": 15, "ABAR_BITS": 16, "ACTIVATION_BITS": 8}
    assert {key: said[key] for key in wanted} == wanted
    mode = "ROUNDING_" + program.rounding.upper()
    assert said["ROUNDING"] == said[mode]
    for declared in [*program.tensors.values(), *program.constants.values()]:
        name = declared.name.upper().replace(".", "_")
        where = "" if declared.name in program.tensors else "constants/"
        assert said[f"{name}_FILE"] == f"{where}{declared.name}.hex"
        assert said[f"{name}_BITS"] == declared.bits and said[f"{name}_SIGNED"] == declared.signed
        assert said[f"{name}_SIZE"] == np.prod(declared.shape)
        assert said.get(f"{name}_EXPONENT") == declared.exponent
        shifts = [list(t.shifts) for t in declared.terms if t.shifts is not None]
        told = [said[key] for key in (f"{name}_GROUP_SHIFTS", f"{name}_GROUP_SHIFTS_2") if key in said]
        assert told == shifts
    for op in program.operators:
        name = op.name.upper().replace(".", "_")
        for key, value in op.attributes.items():
            if key == "segments":
                for s in value:
                    port = f"{name}_{s['port'].upper()}"
                    assert (said[f"{port}_START"], said[f"{port}_STOP"]) == (s["start"], s["stop"])
            else:
                assert said[f"{name}_{key.upper()}"] == value
        for port, bound in check_operator(program, op).items():
            needed = bits_needed(int(bound.low.min()), int(bound.high.max()))
            assert said[f"{name}_{port.upper()}_PROVEN_BITS"] == needed
    tables = {name[:-6]: value for name, value in said.items() if name.endswith("_TABLE")}
    for name, constant in program.constants.items():
        if constant.exponent is None and len(constant.shape) == 1 and constant.bits <= 8:
            octets = program.arrays[name].astype(np.int64) & 255
            assert tables.pop(name.upper().replace(".", "_")) == octets.tolist()
    assert not tables


def test_another_program_gives_other_headers(program):
    other = random_program(6, Size(depth=2), state_bits=16)
    program_bytes(other)
    one, two = read_sv(sv_package(program)), read_sv(sv_package(other))
    assert one["PROGRAM_SHA256"] != two["PROGRAM_SHA256"]
    tables = [key for key in one if key.endswith("_SHIFT_TABLE")]
    assert any(one[key] != two[key] for key in tables)


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_c_compiler(tmp_path):
    """The compiler reads the same integers, and has nothing to complain about."""
    program = embedded.program()
    text = c_header(program)
    said = read_c(text)
    (tmp_path / "intsim.h").write_text(text)
    lines = ['#include "intsim.h"', "#include <stdio.h>", "int main(void) { int i;"]
    for name, value in said.items():
        if isinstance(value, list):
            loop = f"for (i = 0; i < {len(value)}; i++) printf(\" %d\", INTSIM_{name}[i] & 255);"
            lines.append(f'printf("{name} ="); {loop} printf("\\n");')
        elif isinstance(value, int):
            lines.append(f'printf("{name} = %lld\\n", (long long)INTSIM_{name});')
        else:
            lines.append(f'printf("{name} = %s\\n", INTSIM_{name});')
    (tmp_path / "main.c").write_text("\n".join([*lines, "return 0; }", ""]))
    strict = ["cc", "-std=c99", "-O0", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    subprocess.run([*strict, "-o", "main", "main.c"], cwd=tmp_path, check=True, timeout=120)
    out = subprocess.run(["./main"], cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True).stdout
    printed = dict(line.split(" = ", 1) for line in out.splitlines())
    assert printed == {k: " ".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in said.items()}


BENCH = """
module bench;
  import intsim_pkg::*;
  reg [SHIFTS_BITS-1:0] memory [0:SHIFTS_SIZE-1];
  integer i;
  initial begin
    $display("%s %0d %0d %s", PROGRAM_SHA256, TOKENS, EXPONENT, {"path/", SHIFTS_FILE});
    $readmemh(SHIFTS_FILE, memory);
    for (i = 0; i < SHIFTS_SIZE; i = i + 1) begin
      $display("%0d %0d", $signed(SHIFTS_TABLE[8*i +: 8]), $signed(memory[i]));
    end
    $finish;
  end
endmodule
"""


def bench(program, folder):
    """Package, bench and one constant's hex in `folder`; the lines that the bench must print."""
    from golden import hexfile

    constant = "layers.0.mixer.scan.y_shift"
    (folder / "intsim_pkg.sv").write_text(sv_package(program))
    name = constant.upper().replace(".", "_")
    tensor = "layers.0.mixer.scan.h"
    text = BENCH.replace("SHIFTS", name).replace("EXPONENT", tensor.upper().replace(".", "_") + "_EXPONENT")
    (folder / "bench.sv").write_text(text)
    (folder / "constants").mkdir()
    values = program.arrays[constant]
    (folder / "constants" / f"{constant}.hex").write_bytes(hexfile.encode(values, 8, True))
    first = f"{program.digest} 65 {program.tensors[tensor].exponent} path/constants/{constant}.hex"
    return [first, *(f"{v} {v}" for v in values.tolist())]


@pytest.mark.skipif(not shutil.which("iverilog"), reason="Icarus Verilog is not installed")
def test_icarus(tmp_path):
    wanted = bench(embedded.program(), tmp_path)
    build = ["iverilog", "-g2012", "-Wall", "-o", "bench", "intsim_pkg.sv", "bench.sv"]
    done = subprocess.run(build, cwd=tmp_path, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = subprocess.run(["vvp", "bench"], cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True).stdout
    assert out.splitlines()[: len(wanted)] == wanted


@pytest.mark.skipif(not shutil.which("verilator"), reason="Verilator is not installed")
def test_verilator_lint(tmp_path):
    bench(embedded.program(), tmp_path)
    lint = ["verilator", "--lint-only", "-Wall", "--top-module", "bench", "intsim_pkg.sv", "bench.sv"]
    done = subprocess.run(lint, cwd=tmp_path, timeout=300, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command(tmp_path, capsys):
    assert cli.status(["headers", "--out", str(tmp_path / "h"), "--name", "vim"]) == 0
    text = (tmp_path / "h" / "vim_pkg.sv").read_text()
    assert "package vim_pkg;" in text and embedded.program().digest in text
    assert "#define VIM_TOKENS 65" in (tmp_path / "h" / "vim.h").read_text()
    before = sorted(tmp_path.iterdir())
    assert cli.status(["headers", "--out", str(tmp_path / "h")]) == 2  # exists
    assert cli.status(["headers", "--out", str(tmp_path / "new"), "--name", "9 lives"]) == 2
    assert sorted(tmp_path.iterdir()) == before


def test_names_that_fall_together(tmp_path):
    """`a.b_c` and `a_b.c` are the same identifier: the later gets a number, nothing is lost."""
    from golden.headers import Item, number_names

    items = [Item("A", 1), Item("A", 2), Item("A_2", 3), Item("A", 4), Item("t", None), Item("t", None)]
    names = [i.name for i in number_names(items)]
    assert len(set(names[:4])) == 4 and names[4:] == ["t", "t"]
    with pytest.raises(UserError, match="--name"):
        write_headers(tmp_path / "x", random_program(1), "Bad")
