"""Which bytes of which files make a group, and which groups a task needs. Pure arithmetic on a checked manifest.

Bytes of a group that no span covers are zeros (the padding before a tensor's multiple of 64).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from protocol.errors import BadInput, NotFound
from protocol.grouping import names_output
from protocol.manifest import RULE_GGUF, Cut, Manifest, Span, TensorEntry

TEXT_FILE = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|preprocessor_config)\.json"
    r"|merges\.txt|vocab\.txt|chat_template\.jinja|tokenizer\.model|[a-z]*\.tiktoken|spiece\.model|sentencepiece\.bpe\.model"
)
"""Files that tokenize, render and configure: what runs a model beside its tensors."""

_LAYER = re.compile(r"(?:([a-z0-9_]+)\.)?layer\.([0-9]+)(?:/[0-9]+)?")


class TensorSlot(NamedTuple):
    """Cut number `part` of a tensor, where it lies."""

    tensor: TensorEntry
    cut: Cut
    part: int


class Place(NamedTuple):
    """`length` bytes at `at` of group number `group`."""

    group: int
    at: int
    length: int


class LayerBytes(NamedTuple):
    """Plain bytes of the groups of embed (towers included), of each layer of the main stack, of head; `tied`: head needs embed."""

    embed: int
    layers: list[int]
    head: int
    tied: bool


def all_rebuild_spans(manifest: Manifest) -> list[list[Span]]:
    """For every group, every file range its bytes go to, by `at`. Tied weights go to two ranges."""
    spans: list[list[Span]] = [list(group.spans or ()) for group in manifest.groups]
    for tensor in manifest.tensors:
        offset = tensor.offset
        for cut in tensor.cuts:
            if cut.length:
                spans[cut.group].append(Span(tensor.file, offset, cut.length, cut.at))
            offset += cut.length
    for ranges in spans:
        ranges.sort(key=lambda span: (span.at, span.file, span.offset))
    return spans


def all_group_spans(manifest: Manifest) -> list[list[Span]]:
    """For every group, the file ranges that make it, by `at`, each byte once; what lies between is zeros."""
    return [_once(spans) for spans in all_rebuild_spans(manifest)]


def group_spans(manifest: Manifest, group: int) -> list[Span]:
    """`all_group_spans` of one group. For many groups ask for all at once."""
    return all_group_spans(manifest)[group]


def _once(spans: Sequence[Span]) -> list[Span]:
    kept: list[Span] = []
    for span in spans:
        if not kept or span.at != kept[-1].at:
            kept.append(span)
    return kept


def base_name(group: str) -> str:
    """`layer.7` of `layer.7/1`."""
    return group.partition("/")[0]


def main_stack(manifest: Manifest) -> str:
    """The stack that generates: "" (plain `layer.N`), else `decoder`, else the first there is."""
    stacks = [match[1] or "" for group in manifest.groups if (match := _LAYER.fullmatch(group.name))]
    return next((stack for stack in ("", "decoder") if stack in stacks), stacks[0] if stacks else "")


def layer_groups(manifest: Manifest) -> dict[int, list[int]]:
    """Group numbers by layer of the main stack."""
    stack = main_stack(manifest)
    found: dict[int, list[int]] = {}
    for index, group in enumerate(manifest.groups):
        match = _LAYER.fullmatch(group.name)
        if match and (match[1] or "") == stack:
            found.setdefault(int(match[2]), []).append(index)
    return found


def layer_count(manifest: Manifest) -> int:
    """Layers of the main stack; where config.json says fewer (extra prediction layers), what it says."""
    held = max(layer_groups(manifest), default=-1) + 1
    told = manifest.summary.layers
    return min(held, told) if told else held


def check_runnable(manifest: Manifest) -> None:
    """`BadInput` says why no engine runs this model's weights as they are stored; `NotFound`: they are private, and not shared."""
    if manifest.covers:
        raise NotFound("this model is private, and not shared with this node")
    if manifest.rule == RULE_GGUF:
        kept = manifest.summary.dtype or "quantised"
        raise BadInput(
            f"this model is a GGUF file kept as it is ({kept}), which no engine here runs yet; it can be stored and fetched",
            hint="publish it with --gguf dequantise to run it",
        )


def head_needs_embed(manifest: Manifest) -> bool:
    """Whether logits are made with the embedding: tied by config, or stored once, or no output tensor at all."""
    outputs = [tensor for tensor in manifest.tensors if names_output(tensor.name)]
    in_embed = any(base_name(manifest.groups[cut.group].name) == "embed" for tensor in outputs for cut in tensor.cuts)
    return not outputs or in_embed or manifest.summary.tied is True


def _named(manifest: Manifest, name: str) -> list[int]:
    return [index for index, group in enumerate(manifest.groups) if base_name(group.name) == name]


def _embed_groups(manifest: Manifest) -> list[int]:
    """Embed and every stack beside the main one: what the first stage needs besides its layers."""
    main = {index for groups in layer_groups(manifest).values() for index in groups}
    beside = [index for index, group in enumerate(manifest.groups) if _LAYER.fullmatch(group.name) and index not in main]
    return _named(manifest, "embed") + beside


def stage_groups(manifest: Manifest, first: int, end: int) -> list[int]:
    """Group numbers that running layers [first, end) takes, ascending: embed for the first stage, head for the last."""
    count = layer_count(manifest)
    if not 0 <= first < end <= count:
        raise BadInput(f"layers [{first}, {end}) of a model of {count}")
    by_layer = layer_groups(manifest)
    needed = {index for layer in range(first, end) for index in by_layer.get(layer, ())}
    if first == 0 or (end == count and head_needs_embed(manifest)):
        needed.update(_embed_groups(manifest) if first == 0 else _named(manifest, "embed"))
    if end == count:
        needed.update(_named(manifest, "head"))
    return sorted(needed)


def stage_tensors(manifest: Manifest, groups: Iterable[int]) -> list[TensorSlot]:
    """Every cut of every tensor that lies in `groups`, in table order."""
    wanted = set(groups)
    return [TensorSlot(tensor, cut, part) for tensor in manifest.tensors for part, cut in enumerate(tensor.cuts) if cut.group in wanted]


def layer_bytes(manifest: Manifest) -> LayerBytes:
    def total(groups: Iterable[int]) -> int:
        return sum(manifest.groups[index].length for index in groups)

    by_layer = layer_groups(manifest)
    layers = [total(by_layer.get(layer, ())) for layer in range(layer_count(manifest))]
    return LayerBytes(total(_embed_groups(manifest)), layers, total(_named(manifest, "head")), head_needs_embed(manifest))


def text_files(manifest: Manifest) -> list[str]:
    """Names of the files that tokenize, render and configure, in file order."""
    return [entry.name for entry in manifest.files if TEXT_FILE.fullmatch(entry.name)]


def small_files(manifest: Manifest, wanted_names: Iterable[str]) -> dict[str, list[Place]]:
    """For each wanted file the places in files groups whose bytes, joined in order, are the file. Unknown names are left out.

    `BadInput` for a file that holds tensors.
    """
    wanted = set(wanted_names)
    numbers = {index: entry for index, entry in enumerate(manifest.files) if entry.name in wanted}
    places: dict[str, list[Place]] = {entry.name: [] for entry in numbers.values()}
    for index, group in enumerate(manifest.groups):
        for span in group.spans or ():
            if span.file in numbers:
                places[numbers[span.file].name].append(Place(index, span.at, span.length))
    for entry in numbers.values():
        if sum(place.length for place in places[entry.name]) != entry.length:
            raise BadInput(f"{entry.name[:64]!r} holds tensors: it is not a small file")
    return places


def text_groups(manifest: Manifest) -> list[int]:
    """Numbers of the files groups that hold tokenizer, template and config, ascending."""
    places = small_files(manifest, text_files(manifest))
    return sorted({place.group for found in places.values() for place in found})
