"""Formats: what is written is read back, in every width, order and packing; what is no such file is refused."""

import itertools
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golden import hexfile
from golden.formats import BY_ENDING, FORMATS, Layout, Packing, Sheet
from golden.formats.packing import lanes_of, pack
from intsim.arithmetic import container, limits
from intsim.errors import UserError

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
    data = FORMATS[name].encode(values, Sheet("a.b", layout, ("tensor a.b", "shape ; -- // %")))
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
        found = FORMATS[name].decode(FORMATS[name].encode(values, Sheet("t", layout)), layout)
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
    data = FORMATS["hex"].encode(values, Sheet("t", layout, ("tensor t", "program 0")))
    assert data == hexfile.encode(values, 6, True, ("tensor t", "program 0"))
    assert FORMATS["mem"].encode(values, Sheet("t", layout)) == FORMATS["hex"].encode(values, Sheet("t", layout))


def test_files_as_text():
    """What the files look like, character by character."""
    layout = Layout(("token", "channel"), (2, 3), 5, True, Packing("channel-major", 4, "msb-first"))
    values = np.array([[1, -1, 2], [-2, 3, -16]], dtype=np.int8)  # stream 1 -2 -1 3, 2 -16 0 0
    sheet = Sheet("a.b", layout, ("tensor a.b",))
    one, two = "0fbe3", "14000"
    assert FORMATS["hex"].encode(values, sheet).decode() == f"// tensor a.b\n{one}\n{two}\n"
    assert FORMATS["coe"].encode(values, sheet).decode() == (
        f"; tensor a.b\nmemory_initialization_radix=16;\nmemory_initialization_vector=\n{one},\n{two};\n"
    )
    assert FORMATS["mif"].encode(values, sheet).decode() == (
        "-- tensor a.b\nWIDTH=20;\nDEPTH=2;\nADDRESS_RADIX=HEX;\nDATA_RADIX=HEX;\nCONTENT BEGIN\n"
        f"0 : {one};\n1 : {two};\nEND;\n"
    )
    assert FORMATS["bin"].encode(values, sheet) == bytes.fromhex("e3fb0000 00400100")
    assert FORMATS["c"].encode(values, sheet).decode() == (
        "// tensor a.b\n#ifndef A_B_H\n#define A_B_H\n#include <stdint.h>\nstatic const int8_t a_b[6] = {\n"
        "  1, -2, -1,  3,  2,-16,\n};\n#endif // A_B_H\n"
    )


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize("bits, signed", [(5, True), (16, False), (32, True), (64, True), (64, False)])
def test_c_compiler(tmp_path, bits, signed):
    low, high = limits(bits, signed)
    values = np.array([low, high, 0, 1, max(low, -1), high - 1, low + 1] * 3, dtype=container(bits, signed))
    layout = Layout(("token",), values.shape, bits, signed)
    (tmp_path / "t.h").write_bytes(FORMATS["c"].encode(values, Sheet("x.y", layout)))
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
    (tmp_path / "t.hex").write_bytes(FORMATS["hex"].encode(values, Sheet("t", layout, ("tensor t",))))
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
    good = BY_ENDING[ending].encode(np.array([1, -2, 3, -4], dtype=np.int8), Sheet("t", layout, ("tensor t",)))
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
            FORMATS[name].encode(np.array([0, 16]), Sheet("t", layout))
        with pytest.raises(ValueError, match="shape"):
            FORMATS[name].encode(np.array([0]), Sheet("t", layout))
        with pytest.raises(TypeError):
            FORMATS[name].encode(np.array([0.0, 1.0]), Sheet("t", layout))
    for order in ("channels", "tiles:0x4", "tiles:4", "tiles:99999x1", ""):
        with pytest.raises(UserError, match="order"):
            Packing(order)
    for lanes in (0, -1, 5000):
        with pytest.raises(UserError, match="lanes"):
            Packing(lanes=lanes)
    with pytest.raises(UserError, match="lane order"):
        Packing(lane_order="big")
