"""Identities of other homes, as this node has met them: name, home, and the tier its owner gave them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from node.accounts.caller import FREE, TIERS, UNLIMITED
from node.accounts.database import Database
from node.accounts.users import check_tier
from protocol.errors import NotFound
from protocol.ids import PeerId, fingerprint
from protocol.tokens import Claims

MOST = 16_384


@dataclass(frozen=True)
class Identity:
    public: bytes
    name: str | None
    home: PeerId
    tier: str | None = None

    @property
    def full_name(self) -> str:
        mark = fingerprint(self.public)
        return self.name if self.name and self.name.endswith(f"@{mark}") else f"someone@{mark}"


class Identities:
    """In memory, bounded; those with a tier of the owner's are in the file too."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._met: dict[bytes, Identity] = {}

    async def load(self) -> None:
        for row in await self._database.rows("select public, name, home, tier from seen"):
            self._met[bytes(row["public"])] = Identity(bytes(row["public"]), row["name"], PeerId(row["home"]), row["tier"])

    def seen(self, claims: Claims) -> None:
        if claims.account in self._met:
            return
        self._met[claims.account] = Identity(claims.account, claims.name, claims.home)
        if len(self._met) > MOST:
            loose = next((one for one in self._met.values() if one.tier is None), None)
            if loose is not None:
                del self._met[loose.public]

    def tier(self, account: bytes) -> str | None:
        met = self._met.get(account)
        return met.tier if met else None

    def believed(self, tier: str) -> str:
        """A trusted home's word on a tier; it can't make anybody unlimited here."""
        return tier if tier in TIERS and tier != UNLIMITED else FREE

    def named(self, name: str) -> Identity:
        """By `name@fingerprint`; `NotFound` for one this node hasn't met."""
        found = next((one for one in self._met.values() if one.full_name == name), None)
        if found is None:
            raise NotFound(f"{name[:64]!r} was never here", hint="give name@fingerprint; GET /api/v1/users/me shows yours")
        return found

    def called(self, name: str) -> list[Identity]:
        """Whom this node has met under this name: the full one, or the bare one, which several may have."""
        if "@" in name:
            return [one for one in self._met.values() if one.full_name == name]
        return [one for one in self._met.values() if one.name and one.full_name.partition("@")[0].lower() == name.lower()]

    def all(self) -> list[Identity]:
        return list(self._met.values())

    async def set_tier(self, identity: Identity, tier: str) -> Identity:
        given = Identity(identity.public, identity.name, identity.home, check_tier(tier))
        row = (given.public, given.name, given.home, time.time(), given.tier)
        await self._database.run(
            lambda db: db.execute("insert or replace into seen (public, name, home, at, tier) values (?, ?, ?, ?, ?)", row)
        )
        self._met[given.public] = given
        return given
