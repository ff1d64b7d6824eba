"""The DHT as the swarm needs it: a door to a model's first holder, nothing more (design §4, Finding)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

from protocol.ids import ModelId, PeerId


class Found(Protocol):
    """Who announced a key, and where it says it can be dialled (multiaddrs without /p2p)."""

    @property
    def peer(self) -> PeerId: ...

    @property
    def addresses(self) -> Sequence[str]: ...


class Door(Protocol):
    async def join(self, peers: list[tuple[PeerId, list[str]]]) -> object:
        """Enters the DHT through these peers."""

    async def announce(self, key: bytes) -> int:
        """Says that this node has `key`; returns the number of receipts."""

    def withdraw(self, key: bytes) -> None:
        """Says it no more; what others keep of it expires."""

    async def lookup(self, key: bytes, timeout: float) -> Sequence[Found]:
        """Who announced `key`, as far as found within `timeout` seconds."""


def model_key(model: ModelId) -> bytes:
    return hashlib.sha256(b"mf/model/1" + model).digest()
