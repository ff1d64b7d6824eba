"""What the killed process does, step by step, and what may be there after each step. Shared by the child and its judge."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from node.store.interface import ShardKey, ShardStore
from node.store.leases import DAY, GRACE, LEASE
from protocol import limits
from protocol.ids import EncodingId, ModelId, digest
from tests.node.store.samples import MODEL, OTHER, put, shard

Step = tuple[str, object]
LENGTHS = {1: 100_000, 2: 10, 3: limits.LEAF + 3}
"""By seed; small, since every write of every step is a place to be killed at."""

STORE: list[Step] = [
    ("blob", b"manifest"),
    ("model", (MODEL, [b"manifest"])),
    ("put", (1, MODEL)),
    ("put", (2, OTHER)),
    ("put", (1, MODEL)),
    ("blob", b"other manifest"),
    ("model", (OTHER, [b"other manifest"])),
    ("model", (OTHER, [b"other manifest", b"manifest"])),
    ("drop", 2),
    ("blob", b"loose"),
    ("prune", [b"loose"]),
    ("put", (3, OTHER)),
    ("forget", MODEL),
    ("put", (2, OTHER)),
]

LATER = 4_000_000_000.0
"""When every lease of the samples is over, and every blob's grace."""

COLLECT: list[Step] = [
    ("blob", b"manifest"),
    ("model", (MODEL, [b"manifest"])),
    ("put", (1, MODEL)),
    ("put", (2, OTHER)),
    ("put", (3, OTHER)),
    ("blob", b"loose"),
    ("pin", MODEL),
    ("renew", 3),
    ("collect", LATER),
    ("put", (2, OTHER)),
    ("unpin", MODEL),
    ("collect", LATER + 200 * DAY),
    ("put", (1, MODEL)),
]


@dataclass
class State:
    """What is stored: shards by key with their seed and model, blobs by content, models with the contents of their blobs; what is pinned,
    and which leases were renewed at LATER."""

    shards: dict[ShardKey, tuple[int, ModelId]] = field(default_factory=dict)
    blobs: set[bytes] = field(default_factory=set)
    models: dict[ModelId, list[bytes]] = field(default_factory=dict)
    pins: set[ModelId] = field(default_factory=set)
    renewed: set[ShardKey] = field(default_factory=set)


def key_of(seed: int) -> ShardKey:
    return ShardKey(EncodingId(digest(b"encoding %d" % seed)), 0)


def perform(store: ShardStore, step: Step) -> None:
    match step:
        case ("blob", bytes(words)):
            store.put_blob(words)
        case ("model", (model, list(blobs))):
            store.add_model(model, [digest(words) for words in blobs])
        case ("put", (int(seed), model)):
            put(store, shard(seed, LENGTHS[seed], model=model), step=limits.LEAF)
        case ("drop", int(seed)):
            store.drop_shard(key_of(seed), "a test")
        case ("prune", list(blobs)):
            store.prune([digest(words) for words in blobs])
        case ("renew", int(seed)):
            store.renew([key_of(seed)], LATER)
        case ("collect", float(now)):
            store.collect(now)
        case (str(act), bytes(model)):
            {"forget": store.forget, "pin": store.pin, "unpin": store.unpin}[act](ModelId(model))


def after(state: State, step: Step) -> State:
    """The state that `step`, done whole, leaves."""
    state = copy.deepcopy(state)
    match step:
        case ("blob", bytes(words)):
            state.blobs.add(words)
        case ("model", (model, list(blobs))):
            state.models[model] = blobs
        case ("put", (int(seed), model)):
            state.shards[key_of(seed)] = (seed, model)
        case ("drop", int(seed)):
            state.shards.pop(key_of(seed), None)
        case ("prune", list(blobs)):
            state.blobs -= {words for words in blobs if not any(words in listed for listed in state.models.values())}
        case ("renew", int(seed)):
            state.renewed |= {key_of(seed)} & set(state.shards)
        case ("collect", float(now)):
            _collect(state, now)
        case (str(act), bytes(model)):
            {"forget": _forget, "pin": _pin, "unpin": _unpin}[act](state, ModelId(model))
    return state


def _pin(state: State, model: ModelId) -> None:
    state.pins.add(model)


def _unpin(state: State, model: ModelId) -> None:
    state.pins.discard(model)


def _collect(state: State, now: float) -> None:
    kept = {key for key in state.renewed if now - LATER <= LEASE + GRACE}
    state.shards = {key: shard for key, shard in state.shards.items() if key in kept or shard[1] in state.pins}
    state.renewed = kept
    state.blobs = {words for words in state.blobs if any(words in listed for listed in state.models.values())}


def _forget(state: State, model: ModelId) -> None:
    listed = state.models.pop(model, [])
    state.shards = {key: kept for key, kept in state.shards.items() if kept[1] != model}
    state.blobs -= {words for words in listed if not any(words in others for others in state.models.values())}
