"""Whom this node's owner lets in over HTTP, and whom not. One small file in the data directory, durable before it counts.

Deny comes first. Where the allow list has a line, nobody comes in but those it means, by their address, their account or their home; pages
that need no credential stay open then, so that a login is possible, but no new account is made here from elsewhere. The owner's own
keys and this machine's programs at a loopback listener are never kept out: who holds the node can't lock himself out.
Lines of the configuration count beside those of the file, and are changed where they stand.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from node.accounts.caller import Caller
from node.accounts.caller_entry import Network, address_of, network_of, parse_entry
from node.data_dir import write_durably
from protocol import limits
from protocol.errors import BadInput, Conflict, Forbidden, NotFound
from protocol.framing import Record, pack, unpack

log = logging.getLogger(__name__)
FILE = "callers.msgpack"
MOST = 4_096
LISTS = ("allow", "deny")
OWNER = "owner"


class Lines(Record):
    allow: list[str]
    deny: list[str]


class CallerList:
    """One list: `entries` as written, found by what a request shows."""

    def __init__(self, entries: Iterable[str]) -> None:
        self.entries = sorted(set(entries))
        self._names = frozenset(self.entries)
        self._networks = [network for entry in self.entries if (network := network_of(entry)) is not None]

    def match(self, address: str, caller: Caller | None) -> str | None:
        """The line that means this request; None: none does."""
        told = () if caller is None or caller.account is None else (caller.account.hex(), caller.home or "")
        found = next((one for one in told if one in self._names), None)
        return found or self._at(address)

    def _at(self, address: str) -> str | None:
        place = address_of(address) if self._networks else None
        if place is None:
            return None
        return next((_text(network) for network in self._networks if network.version == place.version and place in network), None)


def _text(network: Network) -> str:
    return str(network.network_address) if network.num_addresses == 1 else str(network)


class CallerRules:
    """`allow` and `deny` of the configuration; those of the file after `load`. Without a folder nothing outlives it."""

    def __init__(self, folder: Path | None = None, allow: Iterable[str] = (), deny: Iterable[str] = ()) -> None:
        self._path = None if folder is None else folder / FILE
        self.fixed = {"allow": sorted(set(allow)), "deny": sorted(set(deny))}
        self.kept: dict[str, list[str]] = {"allow": [], "deny": []}
        self._gather()

    def load(self) -> None:
        """`Conflict` for a file that can't be read: whom the owner keeps out must not be forgotten silently."""
        try:
            found = unpack(self._path.read_bytes(), Lines, str(self._path), limits.MIB) if self._path else None
            for entry in [*found.allow, *found.deny] if found else ():
                parse_entry(entry)
        except FileNotFoundError:
            return
        except (OSError, BadInput) as error:
            raise Conflict(f"{self._path} can't be read: {error}", hint="move it away: the lists are empty then") from error
        if found is not None:
            self.kept = {"allow": found.allow, "deny": found.deny}
            self._gather()

    def lists(self) -> dict[str, list[str]]:
        return {name: list(self._lists[name].entries) for name in LISTS}

    def put(self, entry: str, which: str) -> str:
        """Onto that list, off the other; durable and in force when it returns. The entry as it is kept."""
        line, other = parse_entry(entry), LISTS[which == "allow"]
        self._check_fixed(line, other)
        self._keep({which: sorted({*self.kept[which], line}), other: [one for one in self.kept[other] if one != line]})
        return line

    def drop(self, entry: str) -> str:
        """Off both lists; `NotFound` where it is on none."""
        line = parse_entry(entry)
        for name in LISTS:
            self._check_fixed(line, name)
        if not any(line in self.kept[name] for name in LISTS):
            raise NotFound(f"{line} is on no list", hint="mf-node callers list shows them")
        self._keep({name: [one for one in self.kept[name] if one != line] for name in LISTS})
        return line

    def check(self, caller: Caller | None, address: str, *, free: bool = False) -> None:
        """`Forbidden` for whom the owner doesn't let in. `free`: nothing that needs leave is asked for, only who is denied is refused.

        `caller` None: not known yet.
        """
        if caller is not None and caller.who == OWNER:
            return
        line = self._lists["deny"].match(address, caller)
        if line is not None:
            raise _refused(caller, address, line)
        if caller is not None and not free and self._lists["allow"].entries and self._lists["allow"].match(address, caller) is None:
            raise _refused(caller, address, None)

    def _check_fixed(self, line: str, name: str) -> None:
        if line in self.fixed[name]:
            raise Conflict(f"{line} is on the {name} list of the configuration", hint=f"take it out of {name} there and start anew")

    def _keep(self, kept: dict[str, list[str]]) -> None:
        if sum(map(len, kept.values())) > MOST:
            raise BadInput(f"the lists have at most {MOST} lines together")
        if self._path is not None:
            write_durably(self._path, pack(Lines(allow=kept["allow"], deny=kept["deny"])))
        self.kept = kept
        self._gather()

    def _gather(self) -> None:
        self._lists = {name: CallerList([*self.fixed[name], *self.kept[name]]) for name in LISTS}


def _refused(caller: Caller | None, address: str, line: str | None) -> Forbidden:
    who = (caller.name if caller is not None else None) or address
    fields = {"who": who, "address": address, "line": line}
    log.warning("a caller isn't let in", extra={"event": "caller_refused", "fields": fields})
    why = "is on its deny list" if line is not None else "isn't on its allow list"
    return Forbidden(f"this node's owner doesn't let {who[:128]} in: it {why}", hint="ask the owner of the node")
