"""Bodies of /api/v1/auth and /api/v1/users: what is taken and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from node.accounts.passwords import LEAST, MOST
from protocol import limits

Username = Annotated[str, Meta(min_length=1, max_length=64)]
Password = Annotated[str, Meta(min_length=LEAST, max_length=MOST)]
Code = Annotated[str, Meta(min_length=6, max_length=32, description="six digits of the app, or a recovery code")]
Scope = Literal["inference", "models:read", "models:write", "account", "admin"]
Scopes = Annotated[list[Scope], Meta(min_length=1, max_length=8)]
Models = Annotated[list[Annotated[str, Meta(min_length=1, max_length=limits.MAX_NAME)]], Meta(max_length=limits.MAX_TOKEN_MODELS)]
Audience = Annotated[str, Meta(max_length=64, description="a PeerID, or * for a swarm-wide key")]


class Taken(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of bodies: what isn't known is refused by name."""


class RegisterRequest(Taken):
    username: Username
    email: Annotated[str, Meta(max_length=256)]
    password: Password


class LoginRequest(Taken):
    """`username` alone or with its fingerprint; `name@PEERID` for an account of that home, which is then told where to log in."""

    username: Annotated[str, Meta(min_length=1, max_length=128)]
    password: Annotated[str, Meta(max_length=MOST)]
    totp_code: Code | None = None


class RefreshRequest(Taken):
    refresh_token: Annotated[str, Meta(max_length=128)]


class ConfirmRequest(Taken):
    """What a token alone may not do wants the password again."""

    password: Annotated[str, Meta(max_length=MOST)]
    totp_code: Code | None = None


class CodeRequest(Taken):
    totp_code: Code


class KeyBody(Taken):
    """`expires_in` seconds; `audience` limits the key's tokens to one node, or makes a swarm-wide key, good for public inference."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\w .,@/-]+$")] = "key"
    scopes: Scopes = msgspec.field(default_factory=lambda: ["inference", "models:read"])
    models: Models | None = None
    expires_in: Annotated[int, Meta(ge=60, le=10 * 366 * 86_400)] | None = None
    audience: Audience | None = None


class TokenBody(Taken):
    """A token for one node, at most an hour; `scopes` no more than needed."""

    audience: Audience
    scopes: Scopes = msgspec.field(default_factory=lambda: ["inference"])
    models: Models | None = None
    expires_in: Annotated[int, Meta(ge=1, le=limits.TOKEN_LIFETIME)] = limits.TOKEN_LIFETIME


class UsageQuery(Taken):
    period: Literal["day", "week", "month", "year"] = "month"
    start_date: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\d$")] | None = None
    end_date: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\d$")] | None = None


class AuditQuery(Taken):
    """`below`: only lines with a lower number; `verify` reads the whole chain."""

    limit: Annotated[int, Meta(ge=1, le=1_000)] = 100
    below: Annotated[int, Meta(ge=0)] | None = None
    verify: bool = False


class CallerNamed(Taken):
    """`who`: an address or network, an account's key (64 hexadecimal digits) or name@fingerprint, or a home's PeerID."""

    who: Annotated[str, Meta(min_length=1, max_length=128)]


class CallerRule(CallerNamed):
    """`allow`: in, and nobody who isn't on that list; `deny`: out."""

    list: Literal["allow", "deny"]


class CallerLine(msgspec.Struct, kw_only=True):
    """`fixed`: by the node's configuration, changed there alone."""

    caller: str
    name: str | None
    fixed: bool


class CallerLists(msgspec.Struct, kw_only=True):
    """Whom the owner lets in over HTTP (empty: everybody), and whom not, which comes first."""

    allow: list[CallerLine]
    deny: list[CallerLine]


class StageAuditQuery(Taken):
    """`below`: only findings with a lower number; `verify` checks every statement of theirs again."""

    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    below: Annotated[int, Meta(ge=0)] | None = None
    verify: bool = False


class StageSaid(msgspec.Struct, kw_only=True):
    """Who signed what: `role` is the stage itself (session), who ran it again, the third, or the stage before it."""

    role: Literal["before", "session", "again", "third"]
    peer_id: str
    statements: int


class StageFinding(msgspec.Struct, kw_only=True):
    """Two runs of layers [first, end) that parted. `wrong`: who stood alone; null: nobody is blamed, and `why` says so. Of `rows` compared
    `apart` differ, the `worst` by so much. `holds`: what was signed shows it, null where that wasn't asked; `fault` says why it doesn't."""

    number: int
    at: int
    model_id: str
    precision: str
    first: int
    end: int
    parting: Literal["handover", "outputs", "tokens"]
    why: str
    wrong: str | None
    rows: int
    apart: int
    worst: float
    said: list[StageSaid]
    holds: bool | None
    fault: str | None


class DamagedFinding(msgspec.Struct, kw_only=True):
    """A row of the file that isn't as it was written; nothing of it is shown."""

    number: int
    fault: str


class StageSessions(msgspec.Struct, kw_only=True):
    run: int
    drawn: int
    done: int
    dropped: int
    convictions: int
    unknown: int


class StageSteps(msgspec.Struct, kw_only=True):
    run: int
    drawn: int
    audited: int
    dropped: int


class StageAuditCounts(msgspec.Struct, kw_only=True):
    """Since the node began. `outcomes` by word: agreed, wrong, undecided, silent; nobody, skipped, short, failed."""

    sessions: StageSessions
    steps: StageSteps
    outcomes: dict[str, int]


class StageAudits(msgspec.Struct, kw_only=True):
    """`next`: what to give as `below` for more; null: that was all."""

    findings: list[StageFinding]
    damaged: list[DamagedFinding]
    next: int | None
    counts: StageAuditCounts


class Registered(msgspec.Struct, kw_only=True):
    """`api_key` is shown this once. `username` with the fingerprint of the account's key: unmistakable at every node."""

    user_id: str
    username: str
    api_key: str
    key_id: str
    home: str


class LoggedIn(msgspec.Struct, kw_only=True):
    access_token: str
    refresh_token: str
    expires_in: int
    user_id: str
    token_type: Literal["Bearer"] = "Bearer"


class Key(msgspec.Struct, kw_only=True):
    id: str
    name: str
    scopes: list[str]
    models: list[str] | None
    audience: str | None
    created_at: str
    expires_at: str | None


class MadeKey(Key, kw_only=True):
    """`api_key` is shown this once; `swarm_token` of a swarm-wide key is what every node takes."""

    api_key: str
    swarm_token: str | None = None


class Keys(msgspec.Struct, kw_only=True):
    keys: list[Key]


class KeyLink(msgspec.Struct, kw_only=True):
    """The home's word for a key, for a day: the first link of tokens that its holder makes (docs/PROTOCOL.md). Base64."""

    link: str
    expires_in: int


class MadeToken(msgspec.Struct, kw_only=True):
    token: str
    expires_in: int
    audience: str
    token_type: Literal["Bearer"] = "Bearer"


class Enrolled(msgspec.Struct, kw_only=True):
    """Not asked for before it is confirmed."""

    secret: str
    otpauth_uri: str


class RecoveryCodes(msgspec.Struct, kw_only=True):
    """Shown this once, each good once."""

    recovery_codes: list[str]


class Done(msgspec.Struct, kw_only=True):
    done: str


class Me(msgspec.Struct, kw_only=True):
    user_id: str | None
    username: str | None
    account: str | None
    tier: str
    scopes: list[str]
    home: str
    totp: bool


class UsageReport(msgspec.Struct, kw_only=True):
    """`rate_limits`: what is left now."""

    usage_summary: dict[str, Any]
    daily_breakdown: list[dict[str, Any]]
    model_usage: list[dict[str, Any]]
    rate_limits: dict[str, Any]
