"""Private models that this node publishes: begun, shared, changed, taken back. Each change is a new `Readers` record for the swarm.

Who shares needs the role for it; only an owner makes owners and admins, and the last owner stays. Leaving somebody out refuses him from
then on, at every node that has heard of it; what he has read before can't be taken from him: whoever must be sure publishes anew.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from node.accounts.accounts import Accounts
from node.accounts.caller import Caller
from node.private.teams import PREFIX, Teams
from node.private.vault import Opened, Vault
from node.swarm.interface import Swarm
from protocol.errors import BadInput, Conflict, Forbidden, NotFound
from protocol.framing import pack, unpack
from protocol.ids import ModelId, PeerId, model_text, peer_from_public, public_from_peer
from protocol.limits import MAX_READERS, MAX_READERS_RECORD
from protocol.private import ROLES, WRAP, Reader, Said, at_least, decoys, exchange_key, seal_said, wrap
from protocol.records import Card

log = logging.getLogger(__name__)
_SHUFFLE = secrets.SystemRandom()
Entries = dict[str, str]
"""Whom a model is shared with (an identity's hex, `team:NAME`), and the role."""


class Sharing:
    """`load` once the accounts are open and the swarm has started. `take_back` has holders drop their shards."""

    def __init__(self, me: PeerId, accounts: Accounts, vault: Vault, swarm: Swarm, take_back: Callable[[ModelId], Awaitable[None]]) -> None:
        self._me = me
        self._accounts = accounts
        self._database = accounts.database
        self._vault = vault
        self._swarm = swarm
        self._take_back = take_back
        self.teams = Teams(accounts.database)
        self._entries: dict[ModelId, Entries] = {}

    async def load(self) -> None:
        """Tells of all of them again: records and wraps aren't kept, secrets are."""
        for row in await self._database.rows("select model, secret, said from private"):
            model = ModelId(bytes(row["model"]))
            shared = await self._database.rows("select reader, role from readers where model = ?", model)
            self._entries[model] = {one["reader"]: one["role"] for one in shared}
            said = unpack(bytes(row["said"]), Said, "a private model", MAX_READERS_RECORD)
            await self._issue(model, bytes(row["secret"]), said)

    def identity_of(self, caller: Caller) -> bytes | None:
        """As whom a caller reads: his account's key; the node's owner, the node's own."""
        if caller.account is None and caller.who == "owner":
            return public_from_peer(self._me)
        return caller.account

    def owner_of(self, who: str) -> bytes:
        """The identity that `Caller.who` spells."""
        return public_from_peer(self._me) if who == "owner" else bytes.fromhex(who)

    async def begin(self, model: ModelId, secret: bytes, owner: bytes, card: Card) -> None:
        """A model just published; `card` says what a public one's card would."""
        said = Said(
            name=card.name, version=card.version, label=card.label, size=card.size, parameters=card.parameters, created=card.created,
            summary=card.summary, readers=[], nodes=[], description=card.description, license=card.license,
        )  # fmt: skip
        await self._keep(model, secret, said)
        await self._set(model, owner.hex(), "owner")
        await self._issue(model, secret, said)

    def entries(self, caller: Caller, model: ModelId) -> Entries:
        """Whom it is shared with, for whoever may share it."""
        self._need(caller, model, "admin")
        return dict(self._entries[model])

    def listed(self, model: ModelId) -> Entries:
        return dict(self._entries.get(model, {}))

    async def share(self, caller: Caller, model: ModelId, whom: str, role: str | None) -> str:
        """Gives `whom` (an identity, a name, a team) the role, or with None takes it away; how the reader is spelled from now on."""
        mine = self._need(caller, model, "admin")
        reader = await self.reader_of(whom)
        entries = self._entries[model]
        touches = {role, entries.get(reader)} & {"owner", "admin"}
        if touches and not at_least(mine, "owner"):
            raise Forbidden("owners and admins are made and unmade by an owner")
        if role is not None and role not in ROLES:
            raise BadInput(f"role is one of {', '.join(ROLES)}", details={"param": "role"})
        if role is None and reader not in entries:
            raise NotFound("it isn't shared with that identity")
        left = {name: held for name, held in entries.items() if name != reader} | ({reader: role} if role else {})
        if "owner" not in left.values():
            raise Conflict("the last owner stays", hint="make another one first, or DELETE the model")
        await self._check_number(left)
        await self._set(model, reader, role)
        await self._issue_again(model)
        return reader

    async def change(self, caller: Caller, model: ModelId, said: dict[str, str | None]) -> Said:
        """Description or license, by an editor."""
        self._need(caller, model, "editor")
        opened = self._owned(model)
        new = msgspec.structs.replace(opened.said, updated=int(time.time()), **said)
        await self._keep(model, opened.secret, new)
        await self._issue(model, opened.secret, new)
        return new

    async def withdraw(self, caller: Caller, model: ModelId) -> dict[str, Any]:
        """Nobody reads it any more, and its shards are dropped. By an owner."""
        self._need(caller, model, "owner")
        name = self._owned(model).said.full_name()
        await self._swarm.put_readers(model, [], b"")
        await self._database.run(lambda db: db.execute("delete from private where model = ?", (model,)))
        self._entries.pop(model, None)
        await self._take_back(model)
        self._vault.disown(model)
        return {"model_id": model_text(model), "names": [name], "shards_dropped": True}

    async def team_changed(self, name: str) -> None:
        """Told anew: all that is shared with it."""
        for model in [model for model, entries in self._entries.items() if f"{PREFIX}{name}" in entries]:
            await self._issue_again(model)

    async def team_dropped(self, name: str) -> None:
        """Nothing is shared with it any more: another team may have its name tomorrow."""
        reader = f"{PREFIX}{name}"
        for model in [model for model, entries in self._entries.items() if reader in entries]:
            await self._set(model, reader, None)
            await self._issue_again(model)

    def shared_with(self, identity: bytes) -> dict[ModelId, str]:
        """Roles that this identity itself was given, beside those by teams."""
        reader = identity.hex()
        return {model: entries[reader] for model, entries in self._entries.items() if reader in entries}

    async def forget(self, who: str, identity: bytes) -> None:
        """Nothing is shared with it any more, by itself or by teams, and its teams end. What it owns stays its own."""
        own, others = list(await self.teams.mine(who)), await self.teams.of_member(identity)
        await self.teams.forget(who, identity)
        for team in own:
            await self.team_dropped(team)
        for team in set(others) - set(own):
            await self.team_changed(team)
        for model, role in self.shared_with(identity).items():
            if role != "owner":
                await self._set(model, identity.hex(), None)
                await self._issue_again(model)

    async def reader_of(self, whom: str) -> str:
        """`team:NAME`, or an identity's hex, of what a caller may call one: a PeerID, an account's key, a name known here."""
        if whom.startswith(PREFIX):
            await self.teams.members(whom.removeprefix(PREFIX))
            return whom
        return self.identity_named(whom).hex()

    def identity_named(self, whom: str) -> bytes:
        """`BadInput` for none, `NotFound` for a name that this node hasn't met."""
        if len(whom) == 64 and all(letter in "0123456789abcdef" for letter in whom.lower()):
            identity = bytes.fromhex(whom)
        elif user := self._accounts.users.named(whom):
            identity = user.public
        elif "@" in whom:
            identity = self._accounts.identities.named(whom).public
        else:
            identity = public_from_peer(whom)
        exchange_key(identity)
        return identity

    # Inside.

    def _owned(self, model: ModelId) -> Opened:
        opened = self._vault.owned(model)
        if opened is None:
            raise NotFound(f"no private model {model_text(model)} is published here")
        return opened

    def _need(self, caller: Caller, model: ModelId, role: str) -> str:
        has = self._owned(model).said.role_of(self.identity_of(caller))
        if has is None:
            raise NotFound(f"no model is known by the name {model_text(model)!r}")
        if not at_least(has, role):
            raise Forbidden(f"this needs the role {role}, yours is {has}")
        return has

    async def _check_number(self, entries: Entries) -> None:
        if len(await self._readers(entries)) > MAX_READERS - 8:
            raise Conflict(f"a model has at most {MAX_READERS - 8} readers")

    async def _readers(self, entries: Entries) -> dict[bytes, str]:
        """Each identity with its highest role."""
        found: dict[bytes, str] = {}
        for reader, role in entries.items():
            for identity in await self._identities(reader):
                found[identity] = max(role, found.get(identity, role), key=ROLES.index)
        return found

    async def _identities(self, reader: str) -> list[bytes]:
        if not reader.startswith(PREFIX):
            return [bytes.fromhex(reader)]
        try:
            return await self.teams.members(reader.removeprefix(PREFIX))
        except NotFound:  # the team is gone
            return []

    def _nodes(self, readers: dict[bytes, str]) -> list[str]:
        """Where it may run: here, at nodes it is shared with, and at the homes of accounts, as far as they are known."""
        homes = {one.public: one.home for one in self._accounts.identities.all()}
        found: list[str] = [
            self._me,
            *(peer_from_public(identity) for identity in readers),
            *(homes[one] for one in readers if one in homes),
        ]
        return list(dict.fromkeys(found))[:MAX_READERS]

    async def _issue_again(self, model: ModelId) -> None:
        opened = self._owned(model)
        await self._issue(model, opened.secret, opened.said)

    async def _issue(self, model: ModelId, secret: bytes, said: Said) -> None:
        readers = await self._readers(self._entries[model])
        listed = [Reader(identity, role) for identity, role in sorted(readers.items())]
        told = msgspec.structs.replace(said, readers=listed, nodes=self._nodes(readers))
        wraps = [wrap(secret, identity, model, self._me) for identity in readers]
        wraps += decoys(len(wraps), secrets.token_bytes(8 * WRAP))
        _SHUFFLE.shuffle(wraps)
        self._vault.own(Opened(self._me, model, secret, told))
        await self._swarm.put_readers(model, wraps, seal_said(secret, told))

    async def _keep(self, model: ModelId, secret: bytes, said: Said) -> None:
        row = (model, secret, pack(msgspec.structs.replace(said, readers=[], nodes=[])))
        query = "insert into private (model, secret, said) values (?, ?, ?) on conflict (model) do update set said = excluded.said"
        await self._database.run(lambda db: db.execute(query, row))

    async def _set(self, model: ModelId, reader: str, role: str | None) -> None:
        entries = self._entries.setdefault(model, {})
        if role is None:
            query = "delete from readers where model = ? and reader = ?"
            await self._database.run(lambda db: db.execute(query, (model, reader)))
            entries.pop(reader, None)
            return
        query = "insert or replace into readers (model, reader, role) values (?, ?, ?)"
        await self._database.run(lambda db: db.execute(query, (model, reader, role)))
        entries[reader] = role
