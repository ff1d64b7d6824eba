"""A manifest from outside: one rule broken at a time, each refused before a byte of the model is fetched."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import BadInput, MfError
from protocol.framing import pack
from protocol.manifest import FileEntry, Manifest, parse_manifest
from protocol.manifest_check import check_file_name, check_manifest
from tests.protocol.vector_cases import VECTORS

DATA = bytes.fromhex(json.loads((VECTORS / "manifest.json").read_text())["manifest"])
GOOD = parse_manifest(DATA)


def changed(change: Callable[[Manifest], Any]) -> Manifest:
    manifest = copy.deepcopy(GOOD)
    change(manifest)
    return manifest


def put(path: str, value: Any) -> Callable[[Manifest], None]:
    """Sets e.g. `tensors.0.offset`; frozen entries of a list are replaced."""
    *steps, last = path.split(".")

    def change(manifest: Manifest) -> None:
        at: Any = manifest
        for step in steps:
            at = at[int(step)] if step.isdigit() else getattr(at, step)
        if last.isdigit():
            at[int(last)] = value
        else:
            setattr(at, last, value)

    return change


def cut(**fields: int) -> Any:
    return msgspec.structs.replace(GOOD.tensors[0].cuts[0], **fields)


def span(**fields: int) -> Any:
    assert GOOD.groups[-1].spans
    return msgspec.structs.replace(GOOD.groups[-1].spans[0], **fields)


BROKEN = {
    "another rule": put("rule", "g2"),
    "no files": put("files", []),
    "no tensors": put("tensors", []),
    "no groups": put("groups", []),
    "file escapes": put("files.0.name", "../../etc/x"),
    "file absolute": put("files.0.name", "/etc/x"),
    "file unsorted": put("files.0.name", "zzz"),
    "file twice": put("files.0.name", "model.safetensors"),
    "file is a folder": put("files.0.name", "model.safetensors/x"),
    "file length negative": put("files.0.length", -1),
    "file length absurd": put("files.0.length", 1 << 48),
    "file longer": put("files.0.length", 1 << 20),
    "file digest short": put("files.0.digest", b"x"),
    "tensor names no file": put("tensors.0.file", 2),
    "tensor file negative": put("tensors.0.file", -1),
    "tensor name escapes": put("tensors.0.name", "../../etc/x"),
    "tensor name twice": put("tensors.0.name", "model.norm.weight"),
    "tensor outside": put("tensors.4.offset", 1 << 30),
    "tensor offset negative": put("tensors.0.offset", -1),
    "tensors overlap": put("tensors.1.offset", GOOD.tensors[0].offset + 1),
    "tensor moved into the gap": put("tensors.4.offset", GOOD.tensors[4].offset + 1),
    "tensor shape": put("tensors.0.shape", [5, 5]),
    "tensor dtype": put("tensors.0.dtype", "F32"),
    "tensor digest": put("tensors.0.digest", bytes(32)),
    "tensor rank": put("tensors.0.shape", [1] * 7 + [4, 5]),
    "cut unaligned": put("tensors.0.cuts.0", cut(at=1)),
    "cut elsewhere": put("tensors.0.cuts.0", cut(group=0)),
    "cut names no group": put("tensors.0.cuts.0", cut(group=99)),
    "cut missing": put("tensors.0.cuts", []),
    "cut twice": put("tensors.0.cuts", [cut(), cut()]),
    "group renamed": put("groups.0.name", "layer.9"),
    "group longer": put("groups.0.length", 1 << 20),
    "group id": put("groups.0.id", bytes(32)),
    "files group id short": put("groups.4.id", b"x"),
    "span moved": put("groups.4.spans.0", span(offset=1)),
    "span names no file": put("groups.4.spans.0", span(file=7)),
    "spans missing": put("groups.4.spans", None),
    "span left out": lambda manifest: manifest.groups[4].spans.pop(),
    "group left out": lambda manifest: manifest.groups.pop(),
    "group added": lambda manifest: manifest.groups.append(manifest.groups[0]),
    "a million layers": put("summary.layers", 1_000_000),
    "vocabulary": put("summary.vocabulary", limits.MAX_VOCABULARY + 1),
    "hidden negative": put("summary.hidden", -5),
    "model type": put("summary.model_type", "../x\n"),
    "parameters": put("parameters", 1),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_one_broken_rule_is_refused(name: str) -> None:
    with pytest.raises(BadInput):
        check_manifest(changed(BROKEN[name]))


def test_good_one_is_read_and_the_bytes_refuse_too() -> None:
    check_manifest(GOOD)
    with pytest.raises(BadInput, match=r"groups\[0\]"):
        parse_manifest(pack(changed(BROKEN["group id"])))


@pytest.mark.parametrize("field", ["files", "tensors", "groups"])
def test_counts_one_past(field: str) -> None:
    most = {"files": limits.MAX_FILES, "tensors": limits.MAX_TENSORS, "groups": limits.MAX_GROUPS}[field]
    manifest = changed(lambda it: setattr(it, field, [getattr(it, field)[0]] * (most + 1)))
    with pytest.raises(BadInput, match=f"{most + 1} {field}"):
        check_manifest(manifest)


def test_tensors_of_a_file_one_past() -> None:
    entry = msgspec.structs.replace(GOOD.tensors[0], shape=[0], length=0, offset=0)
    many = [msgspec.structs.replace(entry, name=f"{n:06}") for n in range(limits.MAX_TENSORS_PER_FILE + 1)]
    with pytest.raises(BadInput, match="tensors in a file"):
        check_manifest(changed(lambda it: setattr(it, "tensors", many)))


def test_bytes_in_all_one_past() -> None:
    lengths = [(1 << 48) - 1, limits.MAX_GROUPS * limits.MAX_GROUP]
    files = [FileEntry(name=f"m{n}", length=length % (1 << 48) or 1, digest=bytes(32)) for n, length in enumerate(lengths)]
    files[0].length = limits.MAX_GROUPS * limits.MAX_GROUP
    with pytest.raises(BadInput, match="groups can hold"):
        check_manifest(changed(lambda it: setattr(it, "files", files)))


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/../b", "/a", "a//b", "a/", ".hidden", "a/.git/config", "a\\b", "a\0b", "a\nb", "C:x", "\ud800", "n" * 256,
     "/".join(["n" * 200] * 6)],
)  # fmt: skip
def test_unsafe_file_names_are_refused(name: str) -> None:
    with pytest.raises(BadInput):
        check_file_name(name)


@pytest.mark.parametrize("name", ["config.json", "a/b/c.txt", "Übung-1.json", "n" * 255])
def test_safe_file_names_pass(name: str) -> None:
    check_file_name(name)


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_flipped_bytes_raise_nothing_else(at: int, flip: int) -> None:
    data = bytearray(DATA)
    data[at] ^= flip
    try:
        parse_manifest(bytes(data))
    except MfError:
        return


def test_blob_of_empty_arrays_is_refused_cheaply() -> None:
    import tracemalloc

    for bomb in (
        b"\xdd" + (8 * limits.MIB).to_bytes(4, "big") + b"\x90" * 8 * limits.MIB,
        b"\x81\xa1x\xdd\x00\x80\x00\x00" + b"\x90" * 8 * limits.MIB,
    ):
        tracemalloc.start()
        try:
            with pytest.raises(BadInput):
                parse_manifest(bomb)
            assert tracemalloc.get_traced_memory()[1] < 32 * limits.MIB
        finally:
            tracemalloc.stop()
