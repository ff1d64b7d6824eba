"""A small swarm in memory whose nodes keep accounts and private models, put together as node/publishing_setup.py does."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from node.accounts.accounts import Accounts
from node.accounts.caller import Caller
from node.accounts.users import User
from node.network import memory
from node.private.models import PrivateModels
from node.private.sharing import Sharing
from node.private.vault import Vault
from node.publish import PrivatePublish, PublishRequest
from protocol.ids import ModelId, PeerId, model_from
from tests.node.accounts.world import PASSWORD
from tests.node.accounts.world import FakeSwarm as AccountSwarm
from tests.node.verb_fakes import InlineExecutor, VerbNode, VerbSwarm, quiet


@dataclass
class PrivateNode:
    """A verb node with what private models need."""

    verbs: VerbNode
    accounts: Accounts
    vault: Vault
    sharing: Sharing
    private: PrivateModels

    @property
    def owner(self) -> Caller:
        return Caller("key", frozenset(), "owner", "unlimited", claimed=True)

    async def account(self, name: str) -> tuple[Caller, User]:
        user = await self.accounts.register(name, f"{name}@example.org", PASSWORD, "198.51.100.1")
        return Caller("key", frozenset(), f"account:{user.public.hex()}", "known", user.public, user.id, user.full_name, claimed=True), user

    async def publish(self, path: Path, owner: Caller, **more: Any) -> ModelId:
        secret, identity = secrets.token_bytes(32), self.sharing.owner_of(owner.who)

        async def announce(model: ModelId, card: Any) -> None:
            await self.sharing.begin(model, secret, identity, card)

        request = PublishRequest(path=path, private=PrivatePublish(secret, announce), **more)
        return model_from((await self.verbs.publisher.publish(request, quiet))["model_id"])


@dataclass
class PrivateWorld:
    swarm: VerbSwarm
    nodes: list[PrivateNode] = field(default_factory=list)


def make(node: VerbNode, folder: Path) -> PrivateNode:
    seed = node.key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    folder.mkdir(parents=True)
    accounts = Accounts(folder, node.key, AccountSwarm().of(node.peer))
    vault = Vault(node.peer, seed, node.swarm, InlineExecutor())  # type: ignore[arg-type]
    node.locator.opener = vault
    vault.on_lost(node.locator.forget)
    sharing = Sharing(node.peer, accounts, vault, node.swarm, node.publisher.withdraw)  # type: ignore[arg-type]
    return PrivateNode(node, accounts, vault, sharing, PrivateModels(vault, sharing, accounts, node.locator, node.reporter))


@asynccontextmanager
async def world(count: int, folder: Path) -> AsyncIterator[PrivateWorld]:
    made = PrivateWorld(VerbSwarm())
    for number in range(count):
        verbs = await made.swarm.add(folder)
        node = make(verbs, folder / f"accounts{number}")
        await node.accounts.open()
        made.nodes.append(node)
    try:
        yield made
    finally:
        for node in made.nodes:
            await node.accounts.close()
            await node.verbs.network.stop()


class Wire:
    """Every frame that any node receives on the in-memory network: what libp2p would have decrypted for it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.got: dict[PeerId, list[bytes]] = {}
        write, wire = memory._MemoryWire.write, self

        def tapped(way: memory._MemoryWire, data: bytes) -> Any:
            wire.got.setdefault(way._peer, []).append(bytes(data))
            return write(way, data)

        patch.setattr(memory._MemoryWire, "write", tapped)


def lying_at(node: VerbNode) -> list[bytes]:
    """All bytes that lie in a node's store."""
    store = node.transfer.store
    readers = [store.open_shard(info.key) for info in store.list_shards()]
    return [*store._blobs.values(), *(bytes(reader.read(0, reader.length)) for reader in readers if reader is not None)]
