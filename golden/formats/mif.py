""".mif: memory initialization files of Intel (Altera) tools.

    WIDTH=8; DEPTH=4; ADDRESS_RADIX=HEX; DATA_RADIX=HEX; CONTENT BEGIN ... 0 : 7f; ... END;

Behind `--` comment lines, one word a line.  The reader also takes `% %` comments, the radices BIN, DEC, UNS and HEX,
ranges `[0..3] : 00;` and several words behind an address.
"""

from __future__ import annotations

import re

import numpy as np

from golden.formats import text
from golden.formats.base import Elements, Format, Head, check, comment_lines
from golden.formats.coe import decimal_words
from golden.formats.packing import Layout, pack, unknown_elements, unpack
from intsim.errors import UserError
from intsim.program import Array

COMMENT = re.compile(rb"--[^\n]*|%.*?(?:%|\Z)", re.DOTALL)
FIELD = re.compile(rb"\s*(WIDTH|DEPTH|ADDRESS_RADIX|DATA_RADIX)\s*=\s*([A-Za-z0-9]+)\s*;", re.IGNORECASE)
BEGIN = re.compile(rb"\s*CONTENT\s+BEGIN\b", re.IGNORECASE)
END = re.compile(rb"\bEND\s*;\s*\Z", re.IGNORECASE)
BETWEEN = b" \t\r\n\f\v:;[]."
RADICES = ("HEX", "BIN", "DEC", "UNS")
ADDRESS = Layout(("entry",), (1,), 32, False)


def encode(values: Array, head: Head) -> bytes:
    layout = head.layout
    check(values, layout)
    words = pack(values, layout)
    front = comment_lines(head.comments, "--")
    front += f"WIDTH={layout.word_bits};\nDEPTH={layout.words};\n".encode()
    front += b"ADDRESS_RADIX=HEX;\nDATA_RADIX=HEX;\nCONTENT BEGIN\n"
    digits = len(f"{max(layout.words - 1, 0):x}")
    numbers = np.arange(len(words), dtype="<u8").view(np.uint8).reshape(-1, 8)
    before = text.hex_rows(numbers, digits, after=b" : ")
    return front + text.hex_rows(words, layout.digits, before=before, after=b";\n").tobytes() + b"END;\n"


def decode(data: bytes, layout: Layout) -> Elements:
    body = text.blank(data, COMMENT)
    fields: dict[str, str] = {}
    position = 0
    while field := FIELD.match(body, position):
        fields[field[1].decode().upper()] = field[2].decode().upper()
        position = field.end()
    begin = BEGIN.match(body, position)
    if begin is None:
        raise UserError("it is not a memory initialization file: no WIDTH, DEPTH, ... and CONTENT BEGIN")
    end = END.search(body, max(begin.end(), len(body) - (1 << 16)))
    if end is None:
        raise UserError("it is cut off: no END; at its end")
    for name, wanted in (("WIDTH", layout.word_bits), ("DEPTH", layout.words)):
        told = fields.get(name, "")
        if not told.isdigit() or int(told[:12]) != wanted:
            raise UserError(f"its {name} is {told[:40] or 'missing'}, must be {wanted}")
    radix = {name: fields.get(name, "HEX") for name in ("ADDRESS_RADIX", "DATA_RADIX")}
    for name, value in radix.items():
        if value not in RADICES:
            raise UserError(f"its {name} is {value[:40]}, this reads {', '.join(RADICES)}")
    line = body[: begin.end()].count(b"\n") + 1
    content = body[begin.end() : end.start()]
    found = text.tokens(content, BETWEEN, line)
    marks = found.body
    statement = np.cumsum(marks == ord(";"))
    behind = np.cumsum(marks == ord(":"))
    if len(marks) and int(statement[-1]) != int(behind[-1]):
        raise UserError("an entry has no ':' or no ';' of its own")
    number = statement[found.start] if len(found) else np.zeros(0, dtype=np.int64)
    colons = behind[found.start] if len(found) else number
    is_data = colons == number + 1
    odd = ~is_data & (colons != number)
    if odd.any():
        found.complain(int(odd.argmax()), "belongs to no entry")
    words, unknown = _words(found.pick(np.flatnonzero(is_data)), radix["DATA_RADIX"], layout)
    where = _addresses(found.pick(np.flatnonzero(~is_data)), radix["ADDRESS_RADIX"])
    return _place(words, unknown, number[is_data], where, number[~is_data], layout)


def _words(found: text.Tokens, radix: str, layout: Layout) -> tuple[Array, Array | None]:
    if radix == "HEX":
        return text.hex_words(found, layout.word_bits)
    if radix == "BIN":
        return text.binary_words(found, layout.word_bits)
    return decimal_words(found, layout), None


def _addresses(found: text.Tokens, radix: str) -> Array:
    words, unknown = _words(found, radix, ADDRESS)
    if unknown is not None:
        raise UserError("it has an address with x or z digits")
    return np.ascontiguousarray(words).view("<u4")[:, 0].astype(np.int64)


def _place(
    words: Array, unknown: Array | None, entry: Array, address: Array, of_entry: Array, layout: Layout
) -> Elements:
    """Elements of data words and addresses, each with the number of its entry (ascending)."""
    entries = int(max(entry[-1:].tolist() + of_entry[-1:].tolist() + [-1])) + 1
    addresses = np.bincount(of_entry, minlength=entries)
    count = np.bincount(entry, minlength=entries)
    if ((addresses < 1) | (addresses > 2)).any() or (count < 1).any():
        raise UserError("an entry is not an address or a range, ':' and words")
    first = np.concatenate([[0], np.cumsum(addresses)])[:-1].astype(np.int64)
    low = address[first]
    high = np.where(addresses == 2, address[np.minimum(first + 1, len(address) - 1)], low + count - 1)
    length = high - low + 1
    if (length < 1).any() or (high >= layout.words).any() or int(length.sum()) > layout.words:
        raise UserError(f"its entries are not {layout.words} words at the addresses 0 .. {layout.words - 1}")
    begin = np.cumsum(length) - length
    which = np.repeat(np.arange(entries), length)
    offset = np.arange(int(length.sum())) - begin[which]
    source = (np.cumsum(count) - count)[which] + offset % count[which]
    place = low[which] + offset
    if len(np.unique(place)) != layout.words:
        raise UserError(f"it has {len(np.unique(place))} words, must have {layout.words}")
    full = np.empty_like(words, shape=(layout.words, layout.octets))
    full[place] = words[source]
    loose = None
    if unknown is not None:
        loose = np.empty_like(full)
        loose[place] = unknown[source]
    return Elements(unpack(full, layout), unknown_elements(loose, layout))


def largest(layout: Layout) -> int:
    return (1 << 20) + 8 * layout.words * (layout.word_bits + 24)


MIF = Format("mif", "memory initialization file of Intel (Altera) tools", encode, decode, largest)
