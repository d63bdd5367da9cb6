"""Formats: what is written is read back, in every width, order and packing; what is no such file is refused."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import golden.bundle
from golden import hexfile, manifest
from golden.bundle import choose, write_bundle
from golden.cli import cli
from golden.formats import BY_ENDING, FORMATS, Head, Layout, Packing, Style
from golden.formats.packing import lanes_of, pack
from golden.images import Image
from golden.verify import verify
from intsim import embedded
from intsim.arithmetic import container, limits
from intsim.errors import UserError
from intsim.oracle import Oracle
from intsim.program_file import program_bytes
from intsim.synthetic import random_program

SCHEMA = json.loads((Path(golden.bundle.__file__).parent / "manifest.schema.json").read_text())

PACKED = [name for name, f in FORMATS.items() if f.packed]
AXES = (("token", "channel", "state"), ("channel", "input"), ("token",))


def draw_values(draw, shape, bits, signed):
    low, high = limits(bits, signed)
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    values = rng.integers(low, high, size=shape, endpoint=True, dtype=container(bits, signed))
    flat = values.reshape(-1)
    for position in draw(st.lists(st.integers(0, flat.size - 1), max_size=6)):
        flat[position] = draw(st.sampled_from([low, high, low + 1, high - 1, max(low, -1), 0]))
    return values


@st.composite
def cases(draw):
    bits, signed = draw(st.integers(1, 64)), draw(st.booleans())
    axes = draw(st.sampled_from(AXES))
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=len(axes), max_size=len(axes))))
    tile = f"tiles:{draw(st.integers(1, 9))}x{draw(st.integers(1, 9))}"
    tile += draw(st.sampled_from(["", ":by-channel"])) + draw(st.sampled_from(["", ":skewed"]))
    order = draw(st.sampled_from(["row-major", "token-major", "channel-major", "state-major", "input-major", tile]))
    packing = Packing(order, draw(st.integers(1, 9)), draw(st.sampled_from(["lsb-first", "msb-first"])))
    layout = Layout(axes, shape, bits, signed, packing)
    return layout, draw_values(draw, shape, bits, signed)


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from(sorted(FORMATS)))
def test_read_back(case, name):
    layout, values = case
    data = FORMATS[name].encode(values, Head("a.b", layout, ("tensor a.b", "shape ; -- // %")))
    assert len(data) <= FORMATS[name].largest(layout)
    found = FORMATS[name].decode(data, layout)
    assert found.unknown is None and found.values.dtype == layout.dtype
    np.testing.assert_array_equal(found.values, values)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_width(name):
    """Every width from 1 to 64, signed and not, with an odd length and a last word that is not full."""
    rng = np.random.default_rng(0)
    for bits, signed, lanes in itertools.product(range(1, 65), (False, True), (1, 3)):
        low, high = limits(bits, signed)
        values = rng.integers(low, high, size=11, endpoint=True, dtype=container(bits, signed))
        values[:4] = low, high, 0, max(-1, low)
        layout = Layout(("token",), (11,), bits, signed, Packing(lanes=lanes, lane_order="msb-first"))
        found = FORMATS[name].decode(FORMATS[name].encode(values, Head("t", layout)), layout)
        np.testing.assert_array_equal(found.values, values)


def stream_by_definition(layout):
    """Flat element numbers of the stream, written from FORMAT.md with loops."""
    order, shape = layout.packing.order, layout.shape
    numbers = np.arange(layout.size).reshape(shape)
    if not order.startswith("tiles:"):
        axis = order.removesuffix("-major")
        if axis not in layout.axes:
            return numbers.reshape(-1).tolist()
        front = layout.axes.index(axis)
        rest = [a for a in range(len(shape)) if a != front]
        return numbers.transpose([front, *rest]).reshape(-1).tolist()
    if layout.axes[:2] not in (("token", "channel"), ("channel", "input")):
        return numbers.reshape(-1).tolist()
    rows, columns = map(int, order.split(":")[1].split("x"))
    down, across = range(0, shape[0], rows), range(0, shape[1], columns)
    tiles = [(t, c) for t in down for c in across]
    if ":by-channel" in order:
        tiles = [(t, c) for c in across for t in down]
    stream = []
    for t, c in tiles:
        beats = rows + columns - 1 if ":skewed" in order else rows
        for beat, column in itertools.product(range(beats), range(columns)):
            row = beat - column if ":skewed" in order else beat
            real = 0 <= row < rows and t + row < shape[0] and c + column < shape[1]
            depth = int(np.prod(shape[2:]))
            stream += numbers[t + row, c + column].reshape(-1).tolist() if real else [-1] * depth
    return stream


@settings(max_examples=150, deadline=None)
@given(cases())
def test_words_by_definition(case):
    """The packed words are those that the definition gives, integer by integer."""
    layout, values = case
    lanes, bits = layout.packing.lanes, layout.bits
    flat = [int(v) for v in values.reshape(-1)]
    stream = [0 if i < 0 else flat[i] for i in stream_by_definition(layout)]
    stream += [0] * (-len(stream) % lanes)
    wanted = []
    for start in range(0, len(stream), lanes):
        word = 0
        for lane, value in enumerate(stream[start : start + lanes]):
            at = lane if layout.packing.lane_order == "lsb-first" else lanes - 1 - lane
            word |= (value & ((1 << bits) - 1)) << (at * bits)
        wanted.append(word)
    assert [int.from_bytes(word.tobytes(), "little") for word in pack(values, layout)] == wanted
    assert layout.words == len(wanted) and layout.padding == len(stream) - len(flat)
    assert lanes_of(pack(values, layout), layout).tolist() == stream
    order = stream_by_definition(layout)
    for element in (0, len(flat) - 1):
        assert layout.place(element) == divmod(order.index(element), lanes)


def test_hex_is_the_bundle_s():
    """With one lane in row-major order, the bytes of `golden.hexfile`, which a bundle always had."""
    values = np.arange(-13, 14, dtype=np.int8).reshape(3, 9)
    layout = Layout(("token", "channel"), (3, 9), 6, True)
    data = FORMATS["hex"].encode(values, Head("t", layout, ("tensor t", "program 0")))
    assert data == hexfile.encode(values, 6, True, ("tensor t", "program 0"))
    assert FORMATS["mem"].encode(values, Head("t", layout)) == FORMATS["hex"].encode(values, Head("t", layout))


def test_files_as_text():
    """What the files look like, character by character."""
    layout = Layout(("token", "channel"), (2, 3), 5, True, Packing("channel-major", 4, "msb-first"))
    values = np.array([[1, -1, 2], [-2, 3, -16]], dtype=np.int8)  # stream 1 -2 -1 3, 2 -16 0 0
    head = Head("a.b", layout, ("tensor a.b",))
    one, two = "0fbe3", "14000"
    assert FORMATS["hex"].encode(values, head).decode() == f"// tensor a.b\n{one}\n{two}\n"
    assert FORMATS["coe"].encode(values, head).decode() == (
        f"; tensor a.b\nmemory_initialization_radix=16;\nmemory_initialization_vector=\n{one},\n{two};\n"
    )
    assert FORMATS["mif"].encode(values, head).decode() == (
        "-- tensor a.b\nWIDTH=20;\nDEPTH=2;\nADDRESS_RADIX=HEX;\nDATA_RADIX=HEX;\nCONTENT BEGIN\n"
        f"0 : {one};\n1 : {two};\nEND;\n"
    )
    assert FORMATS["bin"].encode(values, head) == bytes.fromhex("e3fb0000 00400100")
    assert FORMATS["c"].encode(values, head).decode() == (
        "// tensor a.b\n#ifndef A_B_H\n#define A_B_H\n#include <stdint.h>\nstatic const int8_t a_b[6] = {\n"
        "  1, -2, -1,  3,  2,-16,\n};\n#endif // A_B_H\n"
    )


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize("bits, signed", [(5, True), (16, False), (32, True), (64, True), (64, False)])
def test_c_compiler(tmp_path, bits, signed):
    low, high = limits(bits, signed)
    values = np.array([low, high, 0, 1, max(low, -1), high - 1, low + 1] * 3, dtype=container(bits, signed))
    layout = Layout(("token",), values.shape, bits, signed)
    (tmp_path / "t.h").write_bytes(FORMATS["c"].encode(values, Head("x.y", layout)))
    kind = "long long" if signed else "unsigned long long"
    code = f'printf("{"%lld" if signed else "%llu"}\\n", ({kind})x_y[i]);'
    (tmp_path / "t.c").write_text(
        f'#include "t.h"\n#include <stdio.h>\nint main(void) {{ for (int i = 0; i < 21; i++) {code} return 0; }}\n'
    )
    strict = ["cc", "-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-o", "t", "t.c"]
    subprocess.run(strict, cwd=tmp_path, check=True, timeout=60)
    out = subprocess.run(["./t"], cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True).stdout
    assert [int(v) for v in out.split()] == values.tolist()


BENCH = """
module bench;
  reg [9:0] memory [0:3];
  integer i;
  initial begin
    $readmemh("t.hex", memory);
    for (i = 0; i < 4; i = i + 1) $display("%0d %0d", $signed(memory[i][4:0]), $signed(memory[i][9:5]));
    memory[2] = 10'bx;
    $writememh("back.hex", memory);
  end
endmodule
"""


@pytest.mark.skipif(not shutil.which("iverilog"), reason="Icarus Verilog is not installed")
def test_icarus_reads_and_writes(tmp_path):
    layout = Layout(("token",), (7,), 5, True, Packing(lanes=2))
    values = np.array([-16, 15, 0, -1, 1, 2, 3], dtype=np.int8)
    (tmp_path / "t.hex").write_bytes(FORMATS["hex"].encode(values, Head("t", layout, ("tensor t",))))
    (tmp_path / "bench.v").write_text(BENCH)
    subprocess.run(["iverilog", "-g2012", "-o", "bench", "bench.v"], cwd=tmp_path, check=True, timeout=60)
    out = subprocess.run(["vvp", "bench"], cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True).stdout
    assert [int(v) for v in out.split()] == [*values.tolist(), 0]
    found = FORMATS["hex"].decode((tmp_path / "back.hex").read_bytes(), layout)
    assert found.unknown.tolist() == [False] * 4 + [True] * 2 + [False]
    assert found.values[~found.unknown].tolist() == [-16, 15, 0, -1, 3]


# What others write

ROW = Layout(("token",), (4,), 8, True)
COE = b"memory_initialization_radix=%d;\nmemory_initialization_vector="


@pytest.mark.parametrize(
    "ending, text",
    [
        ("hex", b"00\r\n7F\r\nff\r\n80\r\n"),
        ("hex", b"// x\n0 7f /* 99\n99 */ f_f // 1\n80"),
        ("hex", b"@0\n00 7f\n@2\nff 80\n"),
        ("hex", b"@2 ff 80\n@00000000 00 7f"),
        ("log", b"VCD info: dumpfile x\n# 00\n# 7f\n$finish at 12\nff\n80\n# done 12\n"),
        ("coe", b"memory_initialization_radix = 10 ;\nmemory_initialization_vector = 0,127 255\n-128;"),
        ("coe", b"; c\n" + (COE % 2).upper() + b"\r\n0,1111111,11111111,10000000;"),
        ("mif", b"WIDTH=8;DEPTH=4;ADDRESS_RADIX=UNS;DATA_RADIX=DEC;CONTENT BEGIN 0:0;1:127 -1;[3..3]:-128;END;"),
        ("mif", b"-- c\nDEPTH=4;WIDTH=8;CONTENT BEGIN\n%x%[0..1]: 00 7F; 3 : 80; 2:ff;\nEND ;\n"),
        ("h", b"#include <x>\nint8_t a[] = { 0, 0x7f, -1L, -128 }; // }"),
        ("bin", b"\x00\x7f\xff\x80"),
    ],
)
def test_what_others_write(ending, text):
    found = BY_ENDING[ending].decode(text, ROW)
    assert found.unknown is None and found.values.tolist() == [0, 127, -1, -128]


def test_mif_range_repeats():
    text = b"WIDTH=8;DEPTH=4;ADDRESS_RADIX=HEX;DATA_RADIX=BIN;CONTENT BEGIN [0..3]: 1 10; END;"
    assert FORMATS["mif"].decode(text, ROW).values.tolist() == [1, 2, 1, 2]


def test_unknown_digits():
    found = FORMATS["hex"].decode(b"00\nxx\n8z\n@3 X1", ROW)
    assert found.unknown.tolist() == [False, True, True, True] and found.values.tolist() == [0, 0, -128, 1]
    found = FORMATS["hex"].decode(b"@1 01 02", ROW)  # what is never written is unknown
    assert found.unknown.tolist() == [True, False, False, True]
    lanes = Layout(("token",), (4,), 6, False, Packing(lanes=2))
    found = FORMATS["hex"].decode(b"0x3\n0zf", lanes)  # an x covers bits of both elements of a word
    assert found.unknown.tolist() == [True, True, True, True]
    found = FORMATS["coe"].decode(b"memory_initialization_radix=16;memory_initialization_vector=0,x,2,3;", ROW)
    assert found.unknown.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    "ending, text, told",
    [
        ("hex", b"00\n01\n02\n", "it has 3 words, must have 4"),
        ("hex", b"00\n01\n02\n03\n04\n", "it has 5 words, must have 4"),
        ("hex", b"", "it has 0 words"),
        ("hex", b"00\n01\n02\n0", "line 4: '0' is cut off: a word has 2 digits"),
        ("hex", b"00\n001\n02\n03\n", "line 2: '001' is wider than 8 bits"),
        ("hex", b"00\n-1\n02\n03\n", "line 2: '-1' is not a hexadecimal word"),
        ("hex", b"// c\n00\n01\n\x00\xff\n03\n", r"line 4: '\x00\xff' is not a hexadecimal word"),
        ("hex", b"00 01 02 03 @1 04", "same address"),
        ("hex", b"@1 00 01 02 03", "line 1: '03' is at address 4, there are 4 words"),
        ("hex", b"@ffffffffff 00", "is at address 1099511627775, there are 4 words"),
        ("hex", b"@ 00", "is not an address"),
        ("hex", b"@ffffffffffffffffffff 00", "is wider than 40 bits"),
        ("hex", b"0123456789" * 10, "is wider than 8 bits"),
        ("hex", b"/* 00 01 02 03", "it has 0 words"),
        ("log", b"nothing\n", "it has 0 words"),
        ("coe", b"00,01,02,03;", "does not begin with"),
        ("coe", COE % 16 + b"00,01,02,03", "cut off"),
        ("coe", COE % 16 + b"00,01,02,03; 4", "goes on"),
        ("coe", COE % 8 + b"00,01,02,03;", "radix is 8"),
        ("coe", COE % 10 + b"0,\n256,1,2;", "line 3: '256' is wider"),
        ("coe", COE % 10 + b"0,-129,1,2;", "'-129' is wider"),
        ("coe", COE % 2 + b"0,1,1,2;", "not a binary word"),
        ("mif", b"WIDTH=8;DEPTH=4;CONTENT BEGIN 0 : 00; 1 : 01; 2 : 02;", "cut off"),
        ("mif", b"WIDTH=8;DEPTH=4;CONTENT BEGIN 0 : 00; 1 : 01; 2 : 02; END;", "has 3 words, must have 4"),
        ("mif", b"WIDTH=9;DEPTH=4;CONTENT BEGIN END;", "its WIDTH is 9, must be 8"),
        ("mif", b"WIDTH=8;CONTENT BEGIN END;", "its DEPTH is missing"),
        ("mif", b"WIDTH=8;DEPTH=4;CONTENT BEGIN [0..ffffffff] : 0; END;", "at the addresses 0 .. 3"),
        ("mif", b"WIDTH=8;DEPTH=4;CONTENT BEGIN [3..0] : 0; END;", "at the addresses 0 .. 3"),
        ("mif", b"WIDTH=8;DEPTH=4;CONTENT BEGIN 0 00; END;", "no ':'"),
        ("mif", b"WIDTH=8;DEPTH=4;CONTENT BEGIN 0 : ; END;", "not an address or a range"),
        ("mif", b"WIDTH=8;DEPTH=4;CONTENT BEGIN : 0 ; END;", "not an address or a range"),
        ("mif", b"WIDTH=8;DEPTH=4;CONTENT BEGIN 0 : 0 : 1; ; END;", "belongs to no entry"),
        ("h", b"int x;", "no array"),
        ("h", b"int8_t a[4] = { 0, 1, 2", "cut off"),
        ("h", b"int8_t a[4] = { 0, 1, 2 };", "3 elements"),
        ("h", b"int8_t a[5] = { 0, 1, 2, 3 };", "in an array of 5, not 4"),
        ("h", b"int8_t a[4] = { 0, 1, 2, 128 };", "'128' does not fit int8_t"),
        ("h", b"int8_t a[4] = { 0, 1, 2, 99999999999999999999 };", "not an integer of up to 64 bits"),
        ("h", b"int8_t a[4] = { 0, 1, 2, 18446744073709551616 };", "not an integer of up to 64 bits"),
        ("h", b"int8_t a[4] = { 0, 1, 2, 1.5 };", "'1.5' is not an integer"),
        ("h", b"int8_t a[4] = { 0, 1, 2, - };", "not an integer"),
        ("h", b"int8_t a[4] = { 0, 1, 2, 3 }; int b[1] = {0};", "more than one"),
        ("bin", b"\x00\x01\x02", "it has 3 bytes, must have 4 words of 1 bytes"),
        ("npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<i1'", "malformed"),
        ("npy", b"hello", "not a NumPy file"),
    ],
)
def test_refused(ending, text, told):
    with pytest.raises(UserError) as refusal:
        BY_ENDING[ending].decode(text, ROW)
    assert told in str(refusal.value)


def npy(array):
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_npy_of_others():
    layout = Layout(("token", "channel"), (2, 3), 5, True)
    values = np.arange(6).reshape(2, 3) - 3
    for array in (values.astype("<i8"), values.astype(">i4"), np.asfortranarray(values.astype("i2"))):
        np.testing.assert_array_equal(FORMATS["npy"].decode(npy(array), layout).values, values)
    for array, told in (
        (values.astype(float), "'<f8', must be integers"),
        (np.array([[1, None, 2]] * 2), "must be integers"),
        (values.T, r"its shape is [3, 2], must be [2, 3]"),
    ):
        with pytest.raises(UserError) as refusal:
            FORMATS["npy"].decode(npy(array), layout)
        assert told in str(refusal.value)
    with pytest.raises(UserError, match="bytes of integers"):
        FORMATS["npy"].decode(npy(values)[:-1], layout)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(BY_ENDING)), st.binary(max_size=80), st.data())
def test_any_bytes_are_read_or_refused(ending, noise, data):
    """A file with a piece replaced by anything is refused with UserError or read; nothing else happens."""
    layout = Layout(("token",), (4,), 5, True, Packing(lanes=data.draw(st.integers(1, 3))))
    good = BY_ENDING[ending].encode(np.array([1, -2, 3, -4], dtype=np.int8), Head("t", layout, ("tensor t",)))
    cut = sorted(data.draw(st.tuples(st.integers(0, len(good)), st.integers(0, len(good)))))
    try:
        found = BY_ENDING[ending].decode(good[: cut[0]] + noise + good[cut[1] :], layout)
    except UserError:
        return
    assert found.values.shape == layout.shape


def test_writers_refuse():
    layout = Layout(("token",), (2,), 5, True)
    for name in FORMATS:
        with pytest.raises(ValueError, match="does not fit"):
            FORMATS[name].encode(np.array([0, 16]), Head("t", layout))
        with pytest.raises(ValueError, match="shape"):
            FORMATS[name].encode(np.array([0]), Head("t", layout))
        with pytest.raises(TypeError):
            FORMATS[name].encode(np.array([0.0, 1.0]), Head("t", layout))
    for order in ("channels", "tiles:0x4", "tiles:4", "tiles:99999x1", ""):
        with pytest.raises(UserError, match="order"):
            Packing(order)
    for lanes in (0, -1, 5000):
        with pytest.raises(UserError, match="lanes"):
            Packing(lanes=lanes)
    with pytest.raises(UserError, match="lane order"):
        Packing(lane_order="big")


# Bundles


@pytest.fixture(scope="module")
def program():
    made = random_program(3)
    program_bytes(made)  # sets its hash
    return made


def images(program, n=1):
    rng = np.random.default_rng(0)
    return [Image(f"{i}.png", rng.integers(0, 256, program.image, dtype=np.uint8), i) for i in range(n)]


STYLES = [
    Style(("hex", "mem", "coe", "mif", "bin", "npy", "c"), Packing("tiles:3x4:skewed", 3, "msb-first")),
    Style(("bin",), Packing("channel-major", 8)),
    Style(("mif", "c"), Packing("state-major")),
    Style(("hex",), Packing()),
]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: ",".join(style.formats))
def test_bundle_in_every_style(tmp_path, program, style):
    """Written, whole by its own verification and by the schema, and read by what its manifest alone says."""
    out = tmp_path / "bundle"
    names = choose(program, state=True)
    write_bundle(out, program, Oracle(program), images(program), names=names, command="", time="", style=style)
    assert verify(out) == []
    said = json.loads((out / "manifest.json").read_text())
    said["run"]["time"] = "2026-01-02T03:04:05Z"
    jsonschema.validate(said, SCHEMA)
    assert said["version"] == "1.1"
    made = Oracle(program).run_one(images(program)[0].pixels)
    made["image"] = images(program)[0].pixels
    for name, entry in [*said["images"][0]["tensors"].items(), *said["constants"].items()]:
        told = said["tensors"].get(name, entry)
        wanted = made[name] if name in made else program.arrays[name]
        packing = Packing(told["order"], told["lanes"], told["lane_order"])
        layout = Layout(tuple(told["axes"]), tuple(told["shape"]), told["bits"], told["signed"], packing)
        assert (told["words"], told["hex_digits"], told["padding"]) == (layout.words, layout.digits, layout.padding)
        if "entry" in told["axes"]:
            assert (told["lanes"], told["padding"]) == (1, 0)  # a ROM keeps one entry a word
        assert list(entry["files"]) == list(style.formats)
        for which, file in entry["files"].items():
            data = (out / file["file"]).read_bytes()
            np.testing.assert_array_equal(FORMATS[which].decode(data, layout).values, wanted)
            if which not in ("npy", "bin"):  # the formats with comments begin with what the tensor is
                head = [line.partition(b" ")[2].decode() for line in data.split(b"\n")[:8]]
                assert head[0] == f"tensor {name}" and f"program {program.digest}" in head
                assert f"bits {told['bits']} {'signed' if told['signed'] else 'unsigned'}" in head
                assert any(line.startswith("exponent ") for line in head)
                lanes = f"{told['lanes']} lane"
                assert any(line.startswith(f"order {told['order']}") and lanes in line for line in head)


def test_bundle_without_style_is_as_it_was(tmp_path, program):
    """Version 1.0, npy and hex, nothing of what a style adds."""
    write_bundle(tmp_path / "b", program, Oracle(program), images(program), names=choose(program), command="", time="")
    said = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert said["version"] == "1.0" and "layout" not in said
    for entry in [*said["tensors"].values(), *said["constants"].values()]:
        assert (entry["order"], entry["lanes"], entry["lane_order"]) == ("row-major", 1, "lsb-first")
        assert entry["words"] == np.prod(entry["shape"]) and "padding" not in entry


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda said: said["layout"].update(lanes=9), "does not follow from the Program"),
        (lambda said: said["layout"].update(lanes=True), "layout's lanes is True"),
        (lambda said: said["layout"].update(order="tiles:9999999x1"), "order 'tiles:9999999x1'"),
        (lambda said: said["layout"].update(order="tiles:60000x60000"), "elements with padding"),
        (lambda said: said["layout"].update(formats=["../x"]), "format '../x'"),
        (lambda said: said["layout"].update(formats=[]), "name each that is wanted once"),
        (lambda said: said["layout"].update(formats=[["hex"]]), "must be names"),
        (lambda said: said.pop("layout"), "version 1.1 is not that of its layout"),
        (lambda said: said.update(layout=7), "layout must have exactly"),
        (lambda said: said.update(version="1.0"), "version 1.0 is not that of its layout"),
        (lambda said: said["images"][0]["tensors"]["image"]["files"].pop("bin"), "must have files in the formats"),
        (lambda said: said["tensors"]["tokens.out"].update(padding=1), "tensors does not follow"),
    ],
)
def test_forged_layout_is_caught(tmp_path, program, change, told):
    out = tmp_path / "b"
    style = Style(("hex", "bin"), Packing("channel-major", 8))
    names = choose(program, ["tokens.out"])
    write_bundle(out, program, Oracle(program), images(program), names=names, command="", time="", style=style)
    said = json.loads((out / "manifest.json").read_text())
    change(said)
    said.pop("run")
    said.pop("content_sha256")
    manifest.seal(said, "", "")
    (out / "manifest.json").write_text(manifest.render(said))
    problems = verify(out)
    assert any(told in problem for problem in problems), problems


def test_command(tmp_path, capsys):
    image = str(next(iter(sorted(embedded.images_path().glob("*.png")))))
    style = ["--format", "bin, c", "--lanes", "4", "--lane-order", "msb", "--order", "channel-major"]
    pick = ["--layers", "layers.0.norm.out", "--accumulators"]
    assert cli.status(["dump", image, *pick, "--out", str(tmp_path / "d"), *style]) == 0
    said = json.loads((tmp_path / "d" / "tensors.json").read_text())
    assert said["layout"] == {"formats": ["bin", "c"], "order": "channel-major", "lanes": 4, "lane_order": "msb-first"}
    roles = {entry["role"] for entry in said["tensors"].values()}
    assert roles == {"input", "output", "accumulator"}
    program = embedded.program()
    assert [n for n, t in program.tensors.items() if t.role == "accumulator" and n not in said["tensors"]] == []
    raw = np.frombuffer((tmp_path / "d" / "layers.0.norm.out.bin").read_bytes(), dtype=np.int8)
    array = FORMATS["c"].decode(
        (tmp_path / "d" / "layers.0.norm.out.h").read_bytes(),
        Layout.of(program.tensors["layers.0.norm.out"], Packing("channel-major")),
    ).values
    assert raw.size == 65 * 128 and (raw.reshape(-1, 4)[:, ::-1].reshape(128, 65).T == array).all()
    for bad in (["--format", "hex,hex"], ["--format", "xml"], ["--lanes", "0"], ["--order", "tiles:2"]):
        assert cli.status(["dump", image, "--out", str(tmp_path / "e"), *bad]) == 2
    assert not (tmp_path / "e").exists()
    assert "Traceback" not in capsys.readouterr().err
