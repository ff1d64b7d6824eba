"""The rules a manifest from outside must keep, each checked before any byte of the model is fetched.

A manifest is content alone and its rule is named, so there is exactly one right table for the files and tensors it
lists. Every figure is first held to its limit; then rule g1 is run again over files and tensors and groups, cuts,
spans, ids and the parameter count are compared with what stands there. That covers at once what a list of rules would cover in
twenty: bounds, alignment, overlap, every byte of every file exactly once. Two kinds of id can't be recomputed without the
bytes (files groups, rows of a tensor over 1 GiB); they are checked when the bytes arrive.
"""

from __future__ import annotations

from itertools import pairwise

from protocol import limits
from protocol.config_summary import check_summary
from protocol.dtypes import BLOCKS
from protocol.errors import BadInput
from protocol.grouping import Grouping, group_model
from protocol.manifest import RULE_GGUF, RULES, Manifest, Summary
from protocol.safetensors_header import check_tensor


def check_manifest(manifest: Manifest) -> None:
    """Raises `BadInput` naming the field and the rule broken."""
    if manifest.covers:
        _check_cover(manifest)
        return
    if manifest.sealed is not None:
        raise BadInput(f"manifest: rule {manifest.rule} seals nothing")
    if manifest.rule not in RULES:
        raise BadInput(f"manifest: rule is {manifest.rule[:16]!r}, this version knows {', '.join(RULES)}")
    _check_counts(manifest)
    _check_files(manifest)
    _check_tensors(manifest)
    _check_rule(manifest)
    check_summary(manifest.summary)
    _compare(manifest, _regroup(manifest))


def _check_cover(manifest: Manifest) -> None:
    """Nothing in it but sealed bytes and groups that are numbered, so that a cover can't tell what it shouldn't."""
    if manifest.files or manifest.tensors or manifest.parameters or manifest.summary != Summary(model_type="private"):
        raise BadInput("manifest: a private model's cover has no files, tensors, parameters or summary")
    if manifest.sealed is None or not 0 < len(manifest.groups) <= limits.MAX_GROUPS:
        raise BadInput(f"manifest: a private model's cover has sealed bytes and 1 to {limits.MAX_GROUPS} groups")
    for number, group in enumerate(manifest.groups):
        if group.name != f"group.{number}" or group.spans is not None or len(group.id) != 32:
            raise BadInput(f"manifest: groups[{number}] of a private model's cover has a name, spans or an id it may not have")
        if not 0 <= group.length <= limits.MAX_GROUP:
            raise BadInput(f"manifest: groups[{number}] has {group.length} bytes, at most {limits.MAX_GROUP}")
    if len({group.id for group in manifest.groups}) != len(manifest.groups):
        raise BadInput("manifest: two groups of a private model's cover have one id")


def check_file_name(name: str) -> None:
    """A file's name relative to the model's folder: no way out of it, nothing hidden, the same on every system."""
    if not 0 < len(name.encode(errors="replace")) <= limits.MAX_FILE_NAME:
        raise BadInput(f"file name {name[:64]!r}: 1 to {limits.MAX_FILE_NAME} bytes allowed")
    if not name.isprintable() or "\\" in name or ":" in name:
        raise BadInput(f"file name {name[:64]!r}: control characters, backslash and ':' are refused")
    for step in name.split("/"):
        if step in ("", ".", "..") or step.startswith(".") or len(step.encode()) > 255:
            raise BadInput(f"file name {name[:64]!r}: empty, hidden, '..' or overlong parts of a path are refused")


def _check_counts(manifest: Manifest) -> None:
    for field, most in (("files", limits.MAX_FILES), ("tensors", limits.MAX_TENSORS), ("groups", limits.MAX_GROUPS)):
        count = len(getattr(manifest, field))
        if not 0 < count <= most:
            raise BadInput(f"manifest: {count} {field}, 1 to {most} allowed")


def _check_files(manifest: Manifest) -> None:
    for entry in manifest.files:
        check_file_name(entry.name)
        if not 0 <= entry.length < 1 << 48 or len(entry.digest) != 32:
            raise BadInput(f"manifest: file {entry.name[:64]!r} has a bad length or digest")
    names = [entry.name for entry in manifest.files]
    for one, other in pairwise(names):
        if one.encode() >= other.encode():
            raise BadInput(f"manifest: files must be sorted by name, each once; {other[:64]!r} isn't after {one[:64]!r}")
    folders = {name[:at] for name in names for at, letter in enumerate(name) if letter == "/"}
    if clash := folders.intersection(names):
        raise BadInput(f"manifest: {min(clash)[:64]!r} is both a file and a folder")


def _check_tensors(manifest: Manifest) -> None:
    counts = [0] * len(manifest.files)
    end, last = (0, 0), (-1, 0, 0, "")
    for tensor in manifest.tensors:
        if not 0 <= tensor.file < len(manifest.files) or len(tensor.digest) != 32:
            raise BadInput(f"manifest: tensor {tensor.name[:64]!r} names no file or has a bad digest")
        check_tensor(tensor.name, tensor.dtype, tensor.shape, tensor.length)
        if tensor.dtype in BLOCKS and manifest.rule != RULE_GGUF:
            raise BadInput(f"manifest: tensor {tensor.name[:64]!r} is {tensor.dtype}, which only rule {RULE_GGUF} knows")
        if tensor.offset < 0 or tensor.offset + tensor.length > manifest.files[tensor.file].length:
            raise BadInput(f"manifest: tensor {tensor.name[:64]!r} lies outside its file")
        place = (tensor.file, tensor.offset, tensor.length, tensor.name)
        if place[:2] < end or place <= last:
            raise BadInput(f"manifest: tensor {tensor.name[:64]!r} overlaps the one before or isn't in file order")
        end, last = (tensor.file, tensor.offset + tensor.length), place
        counts[tensor.file] += 1
    if max(counts) > limits.MAX_TENSORS_PER_FILE:
        raise BadInput(f"manifest: {max(counts)} tensors in a file, at most {limits.MAX_TENSORS_PER_FILE}")
    if len({tensor.name for tensor in manifest.tensors}) != len(manifest.tensors):
        raise BadInput("manifest: two tensors have one name")


def _check_rule(manifest: Manifest) -> None:
    """Rule g2 is for tensors in GGUF files and g1 for all others: one content has one manifest."""
    for number in {tensor.file for tensor in manifest.tensors}:
        name = manifest.files[number].name
        if name.endswith(".gguf") != (manifest.rule == RULE_GGUF):
            raise BadInput(f"manifest: rule {manifest.rule} isn't for tensors in {name[:64]!r}")


def _regroup(manifest: Manifest) -> Grouping:
    total = sum(entry.length for entry in manifest.files)
    if total > limits.MAX_GROUPS * limits.MAX_GROUP:
        raise BadInput(f"manifest: {total} bytes in all, more than {limits.MAX_GROUPS} groups can hold")
    return group_model([entry.length for entry in manifest.files], manifest.tensors, rule=manifest.rule)


def _compare(manifest: Manifest, grouping: Grouping) -> None:
    if len(grouping.groups) != len(manifest.groups):
        raise BadInput(f"manifest: {len(manifest.groups)} groups where rule {manifest.rule} makes {len(grouping.groups)}")
    for index, (stated, made) in enumerate(zip(manifest.groups, grouping.groups, strict=True)):
        where = f"manifest: groups[{index}] {stated.name[:64]!r}"
        if stated.name != made.name:
            raise BadInput(f"{where}: rule {manifest.rule} names it {made.name!r}")
        if stated.length != made.length or stated.spans != made.spans:
            raise BadInput(f"{where}: its length or spans aren't those of rule {manifest.rule}")
        known = made.known_id()
        if len(stated.id) != 32 or (known is not None and stated.id != known):
            raise BadInput(f"{where}: its id isn't that of its tensors")
    for tensor, cuts in zip(manifest.tensors, grouping.cuts, strict=True):
        if tensor.cuts != cuts:
            raise BadInput(f"manifest: cuts of tensor {tensor.name[:64]!r} aren't those of rule {manifest.rule}")
    if manifest.parameters != grouping.parameters:
        raise BadInput(f"manifest: {manifest.parameters} parameters stated, the tensors have {grouping.parameters}")
