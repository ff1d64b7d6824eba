"""The manifest: what a model is, by content alone.

No k, n, codec, cipher or time stands here, so the same files give the same model id whoever publishes
them and whenever. A model is files; bytes that belong to tensors lie in tensor groups, every other byte
(headers, gaps, tokenizer, config) in `files/i` groups, so that rebuilt files are bit-identical.

`model id` = BLAKE3 of `pack(manifest)`.

The largest has 262,144 tensors. Its entries refer to nothing that could refer back, so the garbage collector is spared them (`gc=False`).
"""

from __future__ import annotations

import msgspec

from protocol import limits
from protocol.errors import BadInput
from protocol.framing import Record, pack, unpack
from protocol.ids import ModelId, digest

RULE = "g1"
RULE_GGUF = "g2"
"""As g1, for checkpoints in GGUF files: their tensors' names are translated first."""
RULE_PRIVATE = "p1"
"""The cover of a private model's manifest, which is sealed in it (protocol/private.py)."""
RULES = (RULE, RULE_GGUF)


class FileEntry(Record, gc=False):
    """One file: its name relative to the model's folder, its length in bytes, BLAKE3 of its bytes."""

    name: str
    length: int
    digest: bytes


class Span(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Bytes [offset, offset+length) of file number `file`, at `at` in a group."""

    file: int
    offset: int
    length: int
    at: int


class Cut(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Bytes of a tensor that lie in a group: `length` bytes at `at` (a multiple of 64) of group `group`."""

    group: int
    at: int
    length: int


class TensorEntry(Record, gc=False):
    """One tensor: bytes [offset, offset+length) of file `file`; `cuts` (mostly one) say where it lies in groups.

    `dtype` is safetensors' word (BF16, F32, …), or GGUF's for blocks (Q4_1, …); `digest` is BLAKE3 of its bytes.
    """

    name: str
    dtype: str
    shape: list[int]
    file: int
    offset: int
    length: int
    digest: bytes
    cuts: list[Cut]


class GroupEntry(Record, gc=False):
    """One group: `embed`, `layer.7`, `layer.7/1`, `head` or `files/0`; `length` its plain bytes, `id` its GroupId.

    A tensor group's bytes are its tensors in table order, each at a multiple of 64, zeros between. A
    `files/i` group's bytes are its `spans`, one after the other.
    """

    name: str
    id: bytes
    length: int
    spans: list[Span] | None = None


class Summary(Record):
    """What `config.json` says that planning needs; None where it says nothing."""

    model_type: str
    architecture: str | None = None
    layers: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocabulary: int | None = None
    context: int | None = None
    dtype: str | None = None
    tied: bool | None = None


class Manifest(Record):
    rule: str
    files: list[FileEntry]
    tensors: list[TensorEntry]
    groups: list[GroupEntry]
    summary: Summary
    parameters: int
    sealed: bytes | None = None

    def size(self) -> int:
        """Bytes of all files; of a private model's cover those of its groups."""
        return sum(entry.length for entry in (self.files or self.groups))

    @property
    def covers(self) -> bool:
        """Whether it tells of a private model nothing but its groups' sizes."""
        return self.rule == RULE_PRIVATE

    def group_index(self, name: str) -> int:
        for index, group in enumerate(self.groups):
            if group.name == name:
                return index
        raise BadInput(f"the model has no group {name!r}")


def model_id(manifest_bytes: bytes) -> ModelId:
    return ModelId(digest(manifest_bytes))


def manifest_bytes(manifest: Manifest) -> bytes:
    return pack(manifest)


def parse_manifest(data: bytes) -> Manifest:
    """A checked manifest from hostile bytes: limits, names, indices, products, overlaps."""
    from protocol.manifest_check import check_manifest

    manifest = unpack(data, Manifest, "manifest", limits.MAX_BLOB)
    check_manifest(manifest)
    return manifest
