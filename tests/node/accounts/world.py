"""Homes for tests: accounts in a folder of their own, a swarm that is a set of what was revoked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.accounts.accounts import Accounts
from node.accounts.allowance import Windows
from node.accounts.authenticate import Shown
from node.accounts.journal import Journal
from protocol.ids import PeerId
from protocol.records import Revoked
from protocol.signing import peer_of

PASSWORD = "correct horse 9"


@dataclass
class FakeSwarm:
    """What all homes of a test have told each other; `trusts` whom they take at his word."""

    said: dict[PeerId, tuple[set[bytes], int | None]] = field(default_factory=dict)
    trusts: set[PeerId] = field(default_factory=set)

    def of(self, home: PeerId) -> SwarmView:
        return SwarmView(self, home)


@dataclass
class SwarmView:
    swarm: FakeSwarm
    home: PeerId

    async def put_revocations(self, revoked: Sequence[Revoked], before: int | None = None) -> None:
        self.swarm.said[self.home] = ({entry.id for entry in revoked}, before)

    def revoked(self, home: PeerId, ids: Sequence[bytes], issued: int) -> bool:
        known, before = self.swarm.said.get(home, (set(), None))
        return any(one in known for one in ids) or (before is not None and issued < before)

    def trusted(self, peer: PeerId) -> bool:
        return peer in self.swarm.trusts


def home_key(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


@dataclass
class Home:
    key: Ed25519PrivateKey
    accounts: Accounts
    journal: Journal

    @property
    def peer(self) -> PeerId:
        return self.accounts.home

    async def caller(
        self, authorization: str | None, address: str = "192.0.2.1", method: str = "GET", target: str = "/", body: bytes = b""
    ):  # type: ignore[no-untyped-def]
        async def read() -> bytes:
            return body

        return await self.accounts.authenticator.caller(Shown(authorization, method, target, address, read))


def make_home(folder: Path, swarm: FakeSwarm, seed: int = 1, windows: Windows | None = None) -> Home:
    folder.mkdir(exist_ok=True)
    key = home_key(seed)
    return Home(key, Accounts(folder, key, swarm.of(peer_of(key)), windows), Journal(folder, key))


async def open_home(folder: Path, swarm: FakeSwarm, seed: int = 1, windows: Windows | None = None) -> Home:
    home = make_home(folder, swarm, seed, windows)
    await home.journal.open()
    await home.accounts.open()
    return home


async def close_home(home: Home) -> None:
    await home.accounts.close()
    home.journal.close()
