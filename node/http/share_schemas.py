"""Bodies of sharing and of teams."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from node.http.account_schemas import Taken

Whom = Annotated[str, Meta(min_length=1, max_length=128, description="name@fingerprint, an account's key, a PeerID, or team:NAME")]
Role = Literal["owner", "admin", "editor", "reader"]


class ShareRequest(Taken):
    """reader: sees and runs it; editor: changes what is said of it; admin: shares it; owner: takes it back, makes owners and admins."""

    identity: Whom
    role: Role = "reader"


class UnshareRequest(Taken):
    identity: Whom


class SharedWith(msgspec.Struct, kw_only=True):
    """`identity`: an account's or node's key in hex, or a team."""

    identity: str
    role: str


class Sharers(msgspec.Struct, kw_only=True):
    model_id: str
    shared_with: list[SharedWith]


class TeamRequest(Taken):
    name: Annotated[str, Meta(min_length=1, max_length=64)]


class MemberRequest(Taken):
    identity: Annotated[str, Meta(min_length=1, max_length=128)]


class Team(msgspec.Struct, kw_only=True):
    """`members`: keys in hex."""

    name: str
    members: list[str]


class TeamList(msgspec.Struct, kw_only=True):
    teams: list[Team]
