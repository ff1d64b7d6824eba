"""What a stage is loaded from: its groups side by side, the places of its tensors in them, and the small files beside."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Protocol

from node.assemble import GroupBytes
from node.locate import Located
from protocol.errors import BadInput
from protocol.ids import model_text
from protocol.layout import small_files, text_files
from protocol.manifest import Manifest
from runtime.interface import TensorPlace

AT_ONCE = 4
"""Groups assembled side by side."""


class Groups(Protocol):
    """Where groups come from: an `Assembler`, or the cache before it."""

    async def group(self, located: Located, group: int) -> GroupBytes: ...


async def gather(assembler: Groups, located: Located, numbers: list[int]) -> list[GroupBytes]:
    """These groups, in their order, open; where one can't be had none stays open."""
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> GroupBytes:
        async with limit:
            return await assembler.group(located, number)

    tasks = [asyncio.create_task(one(number)) for number in numbers]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        for done in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(done, GroupBytes):
                done.close()
        raise


async def gather_texts(assembler: Groups, located: Located) -> dict[str, bytes]:
    """Tokenizer, template and config by name."""
    wanted = small_files(located.manifest, text_files(located.manifest))
    if "config.json" not in wanted:
        raise BadInput(f"{model_text(located.model)} has no config.json: it can be fetched, not run")
    files: dict[str, bytes] = {}
    groups: dict[int, bytes] = {}
    for name, places in wanted.items():
        for place in places:
            if place.group not in groups:
                with closing(await assembler.group(located, place.group)) as group:
                    groups[place.group] = group.read()
        files[name] = b"".join(groups[place.group][place.at : place.at + place.length] for place in places)
    return files


def tensor_places(manifest: Manifest, numbers: list[int]) -> list[TensorPlace]:
    """Where each tensor of these groups lies, `group` indexing `numbers`."""
    index = {number: at for at, number in enumerate(numbers)}
    return [
        TensorPlace(
            name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, group=index[cut.group], at=cut.at, length=cut.length, part=part
        )
        for tensor in manifest.tensors
        for part, cut in enumerate(tensor.cuts)
        if cut.group in index
    ]
