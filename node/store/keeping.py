"""Which model a shard is kept for, and what goes when a model is forgotten. Pure; both stores use it.

A shard is stored for one model, but an encoding (and so its shards) may belong to several models kept here. The shard
then stays until the last of them is forgotten. This is worked out from the models' blob lists each time: nothing on
the disk has to be rewritten when a model goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from node.store.interface import ShardInfo, ShardKey
from protocol.ids import ModelId

Models = Mapping[ModelId, Sequence[bytes]]


def for_model(infos: Iterable[ShardInfo], models: Models, model: ModelId | None) -> list[ShardInfo]:
    """The shards kept for `model` (None: all), each naming the model it is kept for now, sorted by key."""
    owners: dict[bytes, list[ModelId]] = {}
    for name in sorted(models):
        for blob in models[name]:
            owners.setdefault(blob, []).append(name)
    found = []
    for info in infos:
        users = owners.get(info.key.encoding, [])
        home = users[0] if users and info.model not in models else info.model
        if model is None or model == home or model in users:
            found.append(replace(info, model=model if model in users else home))
    return sorted(found, key=lambda info: (info.key.encoding, info.key.shard))


def by_model(infos: Iterable[ShardInfo], models: Models) -> dict[ModelId, list[ShardInfo]]:
    """The shards of every model kept here; one that several models share stands under each."""
    users: dict[bytes, list[ModelId]] = {}
    for name, blobs in models.items():
        for blob in blobs:
            users.setdefault(blob, []).append(name)
    found: dict[ModelId, list[ShardInfo]] = {}
    for info in infos:
        for name in dict.fromkeys((info.model, *users.get(info.key.encoding, ()))):
            found.setdefault(name, []).append(info)
    return found


def spared(infos: Iterable[ShardInfo], models: Models) -> int:
    """Bytes that don't lie here because models share shards: of each shard, once for every model beyond the first."""
    kept = [info for shards in by_model(infos, models).values() for info in shards]
    return sum(info.bytes for info in kept) - sum({info.key: info.bytes for info in kept}.values())


def first_homes(infos: Iterable[ShardInfo], models: Models, blobs: Iterable[bytes]) -> dict[ModelId, list[bytes]]:
    """Lists to write before `blobs` get listed for one more model: of models that shards here were stored for, and that have none.

    From then on the lists alone say whom a shard is kept for. Only encodings that no list names yet count: of the others this was done
    when they were first listed, and a model without a list was forgotten since.
    """
    fresh = set(blobs) - {blob for listed in models.values() for blob in listed}
    homes: dict[ModelId, list[bytes]] = {}
    for info in infos:
        if info.key.encoding in fresh and info.model not in models:
            listed = homes.setdefault(info.model, [info.model])
            if info.key.encoding not in listed:
                listed.append(info.key.encoding)
    return homes


def home_of_shared(info: ShardInfo, models: Models) -> list[bytes] | None:
    """The list to write for the model a shard is put for, where only other models' lists name its encoding; None: nothing to do."""
    if info.model in models or not any(info.key.encoding in blobs for blobs in models.values()):
        return None
    return [info.model, info.key.encoding]


def unneeded(infos: Iterable[ShardInfo], models: Models, blobs: Sequence[bytes]) -> list[bytes]:
    """Those of `blobs` that neither a shard (its envelope, its model's manifest) nor a model kept here needs."""
    needed = {blob for name, listed in models.items() for blob in (name, *listed)}
    needed |= {blob for info in infos for blob in (info.key.encoding, info.model)}
    return [blob for blob in blobs if blob not in needed]


def doomed(infos: Sequence[ShardInfo], models: Models, model: ModelId) -> tuple[list[ShardKey], list[bytes]]:
    """Shards and blobs kept for `model` alone; its manifest (whose id is the model's) also where nobody listed it."""
    others = {blob for name, blobs in models.items() if name != model for blob in blobs}
    shards = [info.key for info in for_model(infos, models, model) if info.key.encoding not in others]
    gone = set(shards)
    kept = others | {info.key.encoding for info in infos if info.key not in gone}
    blobs = dict.fromkeys([model, *models.get(model, ()), *(key.encoding for key in shards)])
    return shards, [blob for blob in blobs if blob not in kept]
