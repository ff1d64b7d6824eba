"""What a model's files say of themselves before their bytes are read: config.json, the headers of safetensors and GGUF files.

Checked against each other and against `limits`; all functions block.
"""

from __future__ import annotations

import os

from node.gguf_files import read_gguf
from node.model_folder import INDEX, FoundFile, ModelFolder, indexed, open_unchanged, read_exactly, read_small
from protocol import limits
from protocol.config_summary import parse_config
from protocol.errors import BadInput
from protocol.gguf_header import GgufHeader, gguf_summary
from protocol.manifest import Summary
from protocol.safetensors_header import PREFIX, HeaderTensor, header_length, parse_header


def headers_of(folder: ModelFolder) -> tuple[Summary, dict[int, list[HeaderTensor]]]:
    """The model's figures, and each checkpoint file's tensors by its number. `BadInput` names the file and the rule."""
    summary, headers = _gguf_headers(folder) if folder.gguf else _headers(folder)
    _check_tensor_names(headers)
    return summary, headers


def _summary(folder: ModelFolder) -> Summary:
    config = next((found for found in folder.files if found.name == "config.json"), None)
    if config is None:
        raise BadInput(f"{folder.root}: no config.json there", hint="give the folder that has config.json and the safetensors files")
    return parse_config(read_small(config, limits.MAX_CONFIG))


def _header(found: FoundFile) -> list[HeaderTensor]:
    try:
        with open_unchanged(found) as fd:
            length = header_length(os.pread(fd, PREFIX, 0), found.length)
            return parse_header(read_exactly(fd, PREFIX, length, found.name), found.length)
    except BadInput as error:
        raise BadInput(f"{found.name}: {error.message}", hint=error.hint) from error


def _headers(folder: ModelFolder) -> tuple[Summary, dict[int, list[HeaderTensor]]]:
    headers = {number: _header(folder.files[number]) for number in folder.checkpoint}
    index = next((found for found in folder.files if found.name == INDEX), None)
    if index is not None:
        held = {(tensor.name, folder.files[number].name) for number, tensors in headers.items() for tensor in tensors}
        if missing := sorted(indexed(index).items() - held):
            name, file = missing[0]
            raise BadInput(f"{INDEX}: lists tensor {name[:64]!r} in {file[:64]}, which doesn't hold it", hint="is the download complete?")
    return _summary(folder), headers


def _gguf_headers(folder: ModelFolder) -> tuple[Summary, dict[int, list[HeaderTensor]]]:
    """Of a split file the first part has the figures, and every part its own tensors."""
    read = {number: gguf_header(folder.files[number]) for number in folder.checkpoint}
    tensors = [tensor for header in read.values() for tensor in header.tensors]
    first = read[folder.checkpoint[0]]
    announced = first.values.get("split.tensors.count", len(tensors))
    if announced != len(tensors):
        raise BadInput(f"{folder.files[folder.checkpoint[0]].name}: announces {announced} tensors in all, its parts have {len(tensors)}")
    return gguf_summary(first._replace(tensors=tensors)), {number: header.tensors for number, header in read.items()}


def gguf_header(found: FoundFile) -> GgufHeader:
    """The checked header of a GGUF file."""
    try:
        with open_unchanged(found) as fd:
            return read_gguf(fd, found.length)
    except BadInput as error:
        raise BadInput(f"{found.name}: {error.message}", hint=error.hint) from error


def _check_tensor_names(headers: dict[int, list[HeaderTensor]]) -> None:
    names = [tensor.name for tensors in headers.values() for tensor in tensors]
    if len(names) > limits.MAX_TENSORS:
        raise BadInput(f"the checkpoint has {len(names)} tensors, at most {limits.MAX_TENSORS}")
    if not names:
        raise BadInput("the checkpoint has no tensors")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadInput(f"tensor {name[:64]!r} stands in two files of the checkpoint")
        seen.add(name)
