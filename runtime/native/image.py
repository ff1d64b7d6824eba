"""An object file of the compiler's as bytes that can be mapped and called.

Problem: kernels are compiled once for a machine, and each worker needs them: LLVM in every worker would take some 45 MB and a tenth of a
second, numba as much again. There is no linker on most machines. Choice: the object is compiled so that it refers to nothing but itself,
and by distances alone; its sections are laid side by side and the distances filled in. What is then in the file is what lies in memory, at
whatever address, and all workers of a machine share it. An object that asks for anything else is refused. x86-64's ELF alone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_DISTANCES = {2: 4, 4: 4, 24: 8}
"""R_X86_64_PC32, PLT32, PC64: from where they stand, in so many bytes."""
_BITS, _SYMBOLS, _RELOCATIONS, _ROOM = 1, 2, 4, 8
_KEPT, _WRITABLE = 2, 1
_ALIGN = 64


class Unlinkable(Exception):
    """The text says what the object asks for."""


@dataclass(frozen=True)
class _Section:
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int


def linked(code: bytes, entry: str) -> tuple[bytes, int]:
    """The image, and where in it the function `entry` begins."""
    sections = _sections(code)
    image, begins = bytearray(), dict[int, int]()
    for number, section in enumerate(sections):
        if section.kind == _BITS and section.flags & _KEPT:
            if section.flags & _WRITABLE:
                raise Unlinkable("something that changes")
            image += bytes(-len(image) % _ALIGN)
            begins[number] = len(image)
            image += code[section.offset : section.offset + section.size]
        elif section.kind == _ROOM and section.size:
            raise Unlinkable("room of its own")
    symbols, names = _symbols(code, sections)
    for section in sections:
        if section.kind == _RELOCATIONS and section.info in begins:
            _fill(code, section, begins, symbols, image)
    found = [begins[section] + value for (section, value), name in zip(symbols, names, strict=True) if name == entry and section in begins]
    if len(found) != 1:
        raise Unlinkable(f"{len(found)} functions of the name asked for")
    return bytes(image), found[0]


def _sections(code: bytes) -> list[_Section]:
    head = _HEADER.unpack_from(code)
    if head[0][:6] != b"\x7fELF\x02\x01" or head[2] != 62:
        raise Unlinkable("another kind of processor or file")
    at, size, count = head[6], head[11], head[12]
    rows = [_SECTION.unpack_from(code, at + number * size) for number in range(count)]
    return [_Section(row[1], row[2], row[4], row[5], row[6], row[7]) for row in rows]


def _symbols(code: bytes, sections: list[_Section]) -> tuple[list[tuple[int, int]], list[str]]:
    """Section and place of each, and what it is called."""
    [table] = [section for section in sections if section.kind == _SYMBOLS]
    names = sections[table.link].offset
    places, called = [], []
    for at in range(table.offset, table.offset + table.size, _SYMBOL.size):
        name, _info, _other, section, value, _size = _SYMBOL.unpack_from(code, at)
        places.append((section, value))
        called.append(code[names + name : code.index(b"\0", names + name)].decode("ascii", "replace"))
    return places, called


def _fill(code: bytes, section: _Section, begins: dict[int, int], symbols: list[tuple[int, int]], image: bytearray) -> None:
    for at in range(section.offset, section.offset + section.size, _RELOCATION.size):
        place, info, addend = _RELOCATION.unpack_from(code, at)
        kind, (target, value) = info & 0xFFFFFFFF, symbols[info >> 32]
        if kind not in _DISTANCES or target not in begins:
            raise Unlinkable(f"what lies elsewhere (a reference of kind {kind})")
        here = begins[section.info] + place
        width = _DISTANCES[kind]
        image[here : here + width] = (begins[target] + value + addend - here).to_bytes(width, "little", signed=True)
