"""What the owner may ask about accounts over the socket: tiers, keys of his own, the audit log, what audits of stages found."""

from __future__ import annotations

from typing import Any

from node.accounts.api_keys import KeyRequest
from node.accounts.rule_desk import RuleDesk
from node.accounts.users import User
from node.http.access import Access
from node.owner import Notify, OwnerMethod
from protocol.errors import BadInput, NotFound


class AccountMethods:
    def __init__(self, access: Access) -> None:
        self._accounts = access.accounts
        self._journal = access.journal
        self._rules = RuleDesk(access.accounts, access.journal, access.rules)
        self._stage_audits = access.stage_audits

    def table(self) -> dict[str, OwnerMethod]:
        return {
            "key_create": self.create,
            "key_list": self.keys,
            "key_revoke": self.revoke,
            "account_list": self.list,
            "account_tier": self.tier,
            "callers": self.callers,
            "callers_put": self.put_caller,
            "callers_drop": self.drop_caller,
            "journal_verify": self.verify,
            "journal_read": self.read,
            "stage_audits": self.stage_audits,
        }

    async def create(self, params: dict[str, Any], notify: Notify) -> Any:
        scopes = params.get("scopes") or ["inference", "models:read"]
        if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
            raise BadInput("scopes is a list of texts")
        user = self._user(params)
        request = KeyRequest(str(params.get("name") or "owner's key")[:64], scopes, None, params.get("audience"), params.get("expires"))
        key, text = await self._accounts.keys.make(user, request)
        await self._journal.add("key_made", user=user.full_name if user else "owner", key=key.label, scopes=sorted(key.scopes))
        return {"id": key.label, "api_key": text, "scopes": sorted(key.scopes)}

    async def keys(self, params: dict[str, Any], notify: Notify) -> Any:
        ring = self._accounts.keys.ring
        owners: list[User | None] = [None, *self._accounts.users.all()]
        return {
            "keys": [
                {
                    "id": key.label,
                    "name": key.name,
                    "user": user.full_name if user else None,
                    "scopes": sorted(key.scopes),
                    "created_at": key.created,
                    "expires_at": key.expires,
                }
                for user in owners
                for key in ring.of_user(user.id if user else None)
            ]
        }

    async def revoke(self, params: dict[str, Any], notify: Notify) -> Any:
        ring = self._accounts.keys.ring
        label = str(params.get("id", ""))
        owners = [None, *(user.id for user in self._accounts.users.all())]
        found = next((key for user in owners for key in ring.of_user(user) if key.label == label), None)
        key = found or self._accounts.keys.find(None, label)
        await self._accounts.keys.revoke(key)
        await self._journal.add("key_revoked", user="owner", key=key.label)
        return {"revoked": key.label}

    async def list(self, params: dict[str, Any], notify: Notify) -> Any:
        here = [{"name": user.full_name, "tier": user.tier, "home": self._accounts.home} for user in self._accounts.users.all()]
        away = [{"name": one.full_name, "tier": one.tier or "free", "home": one.home} for one in self._accounts.identities.all()]
        return {"accounts": here + away}

    async def tier(self, params: dict[str, Any], notify: Notify) -> Any:
        name, tier = str(params.get("name", "")), str(params.get("tier", ""))
        user = self._accounts.users.named(name)
        if user is not None:
            await self._accounts.users.set_tier(user.id, tier)
        else:
            await self._accounts.identities.set_tier(self._accounts.identities.named(name), tier)
        await self._journal.add("tier_set", user=user.full_name if user else name, tier=tier)
        return {"name": user.full_name if user else name, "tier": tier}

    async def callers(self, params: dict[str, Any], notify: Notify) -> Any:
        return self._rules.shown()

    async def put_caller(self, params: dict[str, Any], notify: Notify) -> Any:
        which = str(params.get("list", ""))
        return {"caller": await self._rules.put(str(params.get("who", "")), which), "list": which}

    async def drop_caller(self, params: dict[str, Any], notify: Notify) -> Any:
        return {"caller": await self._rules.drop(str(params.get("who", ""))), "list": "none"}

    async def verify(self, params: dict[str, Any], notify: Notify) -> Any:
        verdict = await self._journal.check()
        return {"lines": verdict.lines, "head": verdict.head, "fault": verdict.fault}

    async def read(self, params: dict[str, Any], notify: Notify) -> Any:
        return {"entries": await self._journal.read(int(params.get("limit") or 20))}

    async def stage_audits(self, params: dict[str, Any], notify: Notify) -> Any:
        """A page of findings; `limit`, `below`, `verify` as over HTTP."""
        if self._stage_audits is None:
            raise NotFound("this node looks at nobody's stages")
        limit, below = params.get("limit", 50), params.get("below")
        if not isinstance(limit, int) or not (below is None or isinstance(below, int)):
            raise BadInput("limit and below are whole numbers")
        return await self._stage_audits.page(limit, below, verify=params.get("verify") is True)

    def _user(self, params: dict[str, Any]) -> User | None:
        name = params.get("user")
        if not name:
            return None
        user = self._accounts.users.named(str(name))
        if user is None:
            raise BadInput(f"no account {str(name)[:64]!r} is at home here")
        return user
