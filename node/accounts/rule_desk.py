"""The owner's allow and deny lists as he changes them: names become keys here, and every change goes into the audit log."""

from __future__ import annotations

from typing import Any

from node.accounts.accounts import Accounts
from node.accounts.caller_entry import parse_entry
from node.accounts.caller_rules import LISTS, CallerRules
from node.accounts.journal import Journal
from protocol.errors import BadInput, NotFound


class RuleDesk:
    def __init__(self, accounts: Accounts, journal: Journal, rules: CallerRules) -> None:
        self._accounts = accounts
        self._journal = journal
        self._rules = rules

    def shown(self) -> dict[str, list[dict[str, Any]]]:
        """{"allow": [{"caller", "name", "fixed"}], "deny": …}; `name` of an account met here, `fixed` by the configuration."""
        return {
            name: [{"caller": one, "name": self._name(one), "fixed": one in self._rules.fixed[name]} for one in entries]
            for name, entries in self._rules.lists().items()
        }

    async def put(self, who: str, which: str) -> str:
        """The caller as it stands on the list from now on."""
        if which not in LISTS:
            raise BadInput(f"{which[:40]!r} is no list", hint="allow or deny", details={"param": "list"})
        line = self._rules.put(self._meant(who), which)
        await self._journal.add("caller_rule", caller=line, list=which)
        return line

    async def drop(self, who: str) -> str:
        line = self._rules.drop(self._meant(who))
        await self._journal.add("caller_rule", caller=line, list="none")
        return line

    def _meant(self, who: str) -> str:
        """An address, key or home as it is; the key of an account named, at home here or met here."""
        user = self._accounts.users.named(who)
        if user is not None:
            return user.public.hex()
        try:
            return parse_entry(who)
        except BadInput as error:
            if "@" not in who:
                raise
            try:
                return self._accounts.identities.named(who).public.hex()
            except NotFound as unknown:
                raise NotFound(unknown.message, hint=error.hint) from None

    def _name(self, entry: str) -> str | None:
        if len(entry) != 64:
            return None
        public = bytes.fromhex(entry)
        user = self._accounts.users.by_public(public)
        if user is not None:
            return user.full_name
        return next((one.full_name for one in self._accounts.identities.all() if one.public == public), None)
