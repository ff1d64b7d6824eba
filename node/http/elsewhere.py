"""Where somebody logs in whose account isn't at home here: passwords are good at the home alone.

    name@fingerprint   an account that this node has met: its home
    name               the same, where one account of that name was met; several: their full names and homes, to choose from
    name@PEERID        the node named, wherever this node knows it

A name that was never here can't be told from a wrong one: names are told by tokens, which only those carry who have logged in at home.
So each answer counts as a wrong login of that address: what was met here isn't to be tried out.
"""

from __future__ import annotations

import time
from typing import Any

from node.http.access import Access
from protocol.errors import BadInput, Misdirected
from protocol.ids import PeerId, public_from_peer

FREE = 20
"""Answers to one address before it has to wait, as with wrong passwords."""
MOST_TOLD = 16


def elsewhere(access: Access, name: str, address: str) -> None:
    """`Misdirected` with the home's address where one is known for this name; returns where none is."""
    homes = _homes(access, name)
    if not homes:
        return
    place, now = f"login {address}", time.time()
    access.accounts.guessing.check(now, place)
    access.accounts.guessing.missed(now, place, free=FREE)
    shown = name.partition("@")[0][:64]
    if len(homes) > 1:
        told = [{"username": full, "home": access.home_of(home)} for full, home in homes]
        raise Misdirected(f"several accounts are called {shown}", hint="log in at the home of yours", details={"accounts": told})
    ((_, home),) = homes
    found = access.home_of(home)
    hint = "log in there" if found.get("http") else "log in there; its HTTP address isn't known here"
    raise Misdirected(f"{shown} is at home at {home}{_at(found)}", hint=hint, details={"home": found})


def _homes(access: Access, name: str) -> list[tuple[str, PeerId]]:
    named = _home_named(name)
    if named is not None:
        return [(name, named)]
    met = {(one.full_name, one.home) for one in access.accounts.identities.called(name)}
    return sorted(met)[:MOST_TOLD]


def _home_named(name: str) -> PeerId | None:
    bare, _, home = name.rpartition("@")
    try:
        public_from_peer(home)
    except BadInput:
        return None
    return PeerId(home) if bare else None


def _at(found: dict[str, Any]) -> str:
    urls = found.get("http") or []
    return f", {urls[0]}" if urls else ""
