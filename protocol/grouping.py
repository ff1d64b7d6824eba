"""Rule g1: how a model's bytes are divided into groups, the unit that is stored, fetched and run.

A group is the tensors of one layer, so that a node which runs layers [a, b) fetches those and nothing else. The rule
must give the same groups on every machine for the same files, so it looks at names, offsets and digests alone.

1. *Layer*: the first integer after a segment `layers`, `layer`, `h`, `block` or `blocks` of the dotted name gives `layer.N`.
   Stacks beside the main one are told apart by the outermost segment that names them (`encoder`, `decoder`, a tower,
   vision, audio): `encoder.layer.3`, `vision_tower.layer.3`. Plain `layer.N` is the main stack, else `decoder`, else the first.
2. *Ends*: what lies before the first layer by (file, offset) is `embed`, the rest `head`. By order alone that fails in real
   checkpoints, where safetensors sorts by name: `lm_head.weight` comes before `model.…`, and GPT-2's `wte` after all
   layers. So the order decides only where the name doesn't: a segment that names an output or a final norm
   (`_HEAD`) means `head`, else one that names an embedding (`_EMBED`) means `embed`; what belongs to a tower is
   `embed`, where the first stage needs it. Rejected: reading the
   architecture's code, which would tie the model's id to a version of a library.
3. *Tied weights* lie once: a tensor of rank >= 2 at either end that equals one already in `embed` (dtype, shape, digest)
   takes that one's place there.
4. Inside a group tensors follow in table order, each at the next multiple of 64. Over 1 GiB a group is cut: at tensors, and
   a tensor larger than that at rows, beginning a group of its own; then all its groups are numbered (`embed/0`, `embed/1`).
5. Every byte of every file that is no tensor's (headers, gaps, other files) goes to `files/i` by (file, offset), cut at 1 GiB.

Rule g2 is g1 for GGUF files, whose names are shorter: each segment that `_GGUF_WORDS` knows is replaced, then g1 decides.

Order of groups: embed, layers (by stack, then number), head, files. A group's id is BLAKE3 of the canonical pack of its list of
[dtype, shape, digest]; a cut's shape counts its own rows and its digest is of its own bytes; a files group is one
"U8" tensor. Positions aren't in the id because they follow from the list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Protocol

import msgpack
import msgspec

from protocol import limits
from protocol.errors import BadInput
from protocol.ids import GroupId, digest
from protocol.manifest import RULE, RULE_GGUF, Cut, Span

_LAYER_WORD = re.compile(r"(?:\A|\.)(?:layers|layer|h|blocks|block)(?=\.)")
_NUMBER = re.compile(r"\.([0-9]+)(?=\.|\Z)")
_STACK = re.compile(r"encoder|decoder|visual|(vision|audio|image|speech|video)(_[a-z0-9_]+)?|[a-z0-9_]+_(tower|encoder|decoder)")
_TOWER = re.compile(r"visual|(vision|audio|image|speech|video)(_[a-z0-9_]+)?|[a-z0-9_]+_tower")
_HEAD = re.compile(
    r"lm_head|embed_out|output|output_projection|score|classifier|qa_outputs|pooler|cls|project_out|embedding_norm"
    r"|ln_f|norm_f|final_[a-z_]*norm[a-z_]*|model_norm"
)
_EMBED = re.compile(r"wte|wpe|shared|project_in|[a-z0-9_]*embed[a-z0-9_]*|rotary_emb|token_type|emb|emb_ln")
_NORM = re.compile(r"norm|layer_norm|layernorm|ln|final_layernorm", re.IGNORECASE)
_GGUF_WORDS = {
    "blk": "blocks", "enc": "encoder", "dec": "decoder", "v": "vision", "a": "audio", "mm": "vision_tower",
    "token_embd": "embed", "position_embd": "embed", "token_types": "embed", "token_embd_norm": "embed", "per_layer_token_embd": "embed",
    "rope_freqs": "embed", "rope_factors_long": "embed", "rope_factors_short": "embed", "output_norm": "final_norm",
}  # fmt: skip
"""For rule g2: what GGUF calls things, as rule g1 calls them."""
_OUTPUT = re.compile(r"lm_head|embed_out|output|output_projection")


class Tensor(Protocol):
    """What the rule looks at: bytes [offset, offset+length) of file number `file`, BLAKE3 `digest` of them."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def file(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def digest(self) -> bytes: ...


class SourceTensor(NamedTuple):
    """A tensor as found."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int
    length: int
    digest: bytes


class Member(msgspec.Struct, frozen=True, gc=False):
    """What lies at `at` of a group: a tensor, or rows of one (then `digest` is None until someone has hashed them)."""

    dtype: str
    shape: Sequence[int]
    digest: bytes | None
    file: int
    offset: int
    length: int
    at: int


@dataclass
class PlannedGroup:
    """`members` for a tensor group, `spans` for a files group; `length` in bytes with its padding."""

    name: str
    length: int = 0
    members: list[Member] = field(default_factory=list)
    spans: list[Span] | None = None

    def known_id(self) -> GroupId | None:
        """The group's id where the digests at hand give it."""
        if self.spans is not None or any(member.digest is None for member in self.members):
            return None
        return group_id((member.dtype, member.shape, member.digest or b"") for member in self.members)


@dataclass
class Grouping:
    """Groups in their order, and for each tensor given (same order) its cuts."""

    groups: list[PlannedGroup]
    cuts: list[list[Cut]]
    parameters: int


def group_id(members: Iterable[tuple[str, Sequence[int], bytes]]) -> GroupId:
    # As `pack` would, which has nothing to sort in a list of lists, at a tenth of its time.
    return GroupId(digest(bytes(msgpack.packb([[dtype, list(shape), sha] for dtype, shape, sha in members], use_bin_type=True))))


def files_group_id(length: int, digest_of_bytes: bytes) -> GroupId:
    return group_id([("U8", (length,), digest_of_bytes)])


def layer_of(name: str) -> tuple[str, int] | None:
    """(stack, number) of a tensor that belongs to a layer; the main stack is ""."""
    word = _LAYER_WORD.search(name)
    found = _NUMBER.search(name, word.end()) if word else None
    if word is None or found is None:
        return None
    number = found[1]
    if len(number) > 9 or int(number) >= limits.MAX_LAYERS:
        raise BadInput(f"tensor {name[:64]!r}: layer {number[:12]}, at most {limits.MAX_LAYERS} layers")
    return _stack(name[: word.start()]), int(number)


@lru_cache(256)
def _stack(before: str) -> str:
    return next((segment for segment in before.split(".") if _STACK.fullmatch(segment)), "")


def plain_name(name: str) -> str:
    """A GGUF tensor's name in the words rule g1 knows: `blocks.7.attn_q.weight` of `blk.7.attn_q.weight`."""
    return ".".join(_GGUF_WORDS.get(segment, segment) for segment in name.split("."))


def _plainly_named(tensor: Tensor) -> SourceTensor:
    name = plain_name(tensor.name)
    return SourceTensor(name, tensor.dtype, tuple(tensor.shape), tensor.file, tensor.offset, tensor.length, tensor.digest)


def names_output(name: str) -> bool:
    """Whether this tensor turns hidden states into logits (`lm_head.weight`)."""
    return any(_OUTPUT.fullmatch(segment) for segment in name.split("."))


def _end_of(name: str, before_layers: bool) -> str:
    segments = name.split(".")
    if any(_TOWER.fullmatch(segment) for segment in segments):
        return "embed"
    if any(_HEAD.fullmatch(segment) for segment in segments):
        return "head"
    if any(_EMBED.fullmatch(segment) for segment in segments):
        return "embed"
    if len(segments) > 1 and _NORM.fullmatch(segments[-2]):
        return "head"
    return "embed" if before_layers else "head"


def row_cuts(shape: Sequence[int], length: int, limit: int = limits.MAX_GROUP) -> list[tuple[int, int, int]]:
    """(rows, offset in the tensor, length) of each cut of a tensor too large for one group; one cut for all others."""
    if length <= limit:
        return [(shape[0] if shape else 1, 0, length)]
    rows = shape[0]
    row = length // rows
    if row > limit or row * rows != length:
        raise BadInput(f"a tensor of shape {list(shape)} has rows over {limit} bytes: it can't be cut")
    most = limit // row
    return [(min(most, rows - first), first * row, min(most, rows - first) * row) for first in range(0, rows, most)]


def group_model(lengths: Sequence[int], tensors: Sequence[Tensor], limit: int = limits.MAX_GROUP, rule: str = RULE) -> Grouping:
    """Rule g1 or g2 over files of these `lengths`; `tensors` sorted by (file, offset). Pure: hashing what ids lack is the caller's.

    `limit` is MAX_GROUP except in tests.
    """
    buckets, alias = _assign([_plainly_named(tensor) for tensor in tensors] if rule == RULE_GGUF else tensors)
    grouping = Grouping([], [[] for _ in tensors], 0)
    for name in sorted(buckets, key=_order):
        _place(grouping, name, [(index, tensors[index]) for index in buckets[name]], limit)
    for index, original in alias.items():
        grouping.cuts[index] = grouping.cuts[original]
    grouping.parameters = sum(math.prod(tensor.shape) for index, tensor in enumerate(tensors) if index not in alias)
    grouping.groups += _files_groups(lengths, tensors, limit)
    if len(grouping.groups) > limits.MAX_GROUPS:
        raise BadInput(f"the model makes {len(grouping.groups)} groups, at most {limits.MAX_GROUPS}")
    return grouping


def _order(name: str) -> tuple[int, str, int]:
    if name in ("embed", "head"):
        return (0 if name == "embed" else 2, "", 0)
    stack, _, number = name.rpartition("layer.")
    return 1, stack, int(number)


def _assign(tensors: Sequence[Tensor]) -> tuple[dict[str, list[int]], dict[int, int]]:
    """Tensor numbers by group name, and which tensor lies in the place of which."""
    buckets: dict[str, list[int]] = {}
    ends: list[tuple[int, str]] = []
    before = True
    for index, tensor in enumerate(tensors):
        layer = layer_of(tensor.name)
        if layer is None:
            ends.append((index, _end_of(tensor.name, before)))
            continue
        before = False
        stack, number = layer
        buckets.setdefault(f"{stack}.layer.{number}" if stack else f"layer.{number}", []).append(index)
    alias: dict[int, int] = {}
    placed: dict[tuple[str, tuple[int, ...], bytes], int] = {}
    for index, end in sorted(ends, key=lambda item: (item[1] != "embed", item[0])):
        tensor = tensors[index]
        key = (tensor.dtype, tuple(tensor.shape), tensor.digest)
        if key in placed:
            alias[index] = placed[key]
            continue
        if end == "embed" and len(tensor.shape) >= 2 and tensor.length:
            placed[key] = index
        buckets.setdefault(end, []).append(index)
    return buckets, alias


def _place(grouping: Grouping, name: str, tensors: list[tuple[int, Tensor]], limit: int) -> None:
    made = [PlannedGroup(name)]
    first = len(grouping.groups)
    for index, tensor in tensors:
        group = made[-1]
        at = -(-group.length // limits.ALIGNMENT) * limits.ALIGNMENT
        if at + tensor.length <= limit:  # as nearly all are
            group.members.append(Member(tensor.dtype, tensor.shape, tensor.digest, tensor.file, tensor.offset, tensor.length, at))
            group.length = at + tensor.length
            grouping.cuts[index].append(Cut(first + len(made) - 1, at, tensor.length))
            continue
        cuts = row_cuts(tensor.shape, tensor.length, limit)
        for rows, offset, length in cuts:
            at = -(-made[-1].length // limits.ALIGNMENT) * limits.ALIGNMENT
            if made[-1].members and (at + length > limit or (len(cuts) > 1)):
                made.append(PlannedGroup(name))
                at = 0
            whole = len(cuts) == 1
            shape = tensor.shape if whole else (rows, *tensor.shape[1:])
            member = Member(tensor.dtype, shape, tensor.digest if whole else None, tensor.file, tensor.offset + offset, length, at)
            made[-1].members.append(member)
            made[-1].length = at + length
            grouping.cuts[index].append(Cut(first + len(made) - 1, at, length))
    if len(made) > 1:
        for number, group in enumerate(made):
            group.name = f"{name}/{number}"
    grouping.groups += made


def _files_groups(lengths: Sequence[int], tensors: Sequence[Tensor], limit: int) -> list[PlannedGroup]:
    made: list[PlannedGroup] = []
    for file, offset, length in _plain_runs(lengths, tensors):
        while length:
            if not made or made[-1].length == limit:
                made.append(PlannedGroup(f"files/{len(made)}", spans=[]))
            group = made[-1]
            take = min(length, limit - group.length)
            assert group.spans is not None
            group.spans.append(Span(file, offset, take, group.length))
            group.length += take
            offset, length = offset + take, length - take
    return made


def _plain_runs(lengths: Sequence[int], tensors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """(file, offset, length) of every run of bytes that is no tensor's."""
    runs: list[tuple[int, int, int]] = []
    ends = [0] * len(lengths)
    by_file: list[list[Tensor]] = [[] for _ in lengths]
    for tensor in tensors:
        by_file[tensor.file].append(tensor)
    for file, length in enumerate(lengths):
        for tensor in by_file[file]:
            if tensor.offset > ends[file]:
                runs.append((file, ends[file], tensor.offset - ends[file]))
            ends[file] = max(ends[file], tensor.offset + tensor.length)
        if ends[file] < length:
            runs.append((file, ends[file], length - ends[file]))
    return runs
