"""Bearer tokens that narrow: who speaks, at which node, for how long and for what.

A node must believe a caller whose account lies at another node, without asking that node: it may be away, and a question for each
request would make it a server. So a token carries its own proof, a chain of signed links. The first is signed by the *home*, the
node where the account lies; a link may name a `holder`, an Ed25519 key that may sign the next one, and each link can only
narrow what the one before allows (scopes, models, audience, time). The last link names one node as its `audience` and no
holder: what is sent to a node is of no use to that node, or to whoever reads it there, anywhere else.

An API key is such a holder's private key. Its home gives, once a day, a first link that names it; the client then makes a token for any
node by itself, or lets its home do it. What is revoked is named by a link's `id` in the home's `Revocations`, a signed record
that travels with the swarm's others; it is kept as long as any link with that id could live.

Rejected: JWT (its header says how it is to be checked, and half of its history is that header), macaroons (the checker must have the
secret), a question to the home per request. Biscuit is the nearest; it brings a rule language that nothing here needs.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol import limits
from protocol.errors import BadInput, Unauthorized
from protocol.framing import Record, pack, unpack
from protocol.ids import PeerId, digest, peer_from_public, public_from_peer
from protocol.signing import open_sealed, peer_of, seal, verify_bytes

TOKEN_DOMAIN = "mf/token/1"
REQUEST_DOMAIN = "mf/request/1"
TOKEN_PREFIX = "mf_tok_"
EVERYWHERE = "*"
"""Audience of a swarm-wide key: good at every node, for public inference alone."""
SCOPES = ("inference", "models:read", "models:write", "account", "admin")
PUBLIC_SCOPES = frozenset({"inference", "models:read"})
"""What a token may do at a node that isn't its home unless it says more; all that a swarm-wide key may ever do."""
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~@/-]{0,95}\Z")


class Link(Record):
    """One link. `account` is the Ed25519 key that is the caller's identity, `name` what its home calls it, `tier` what its home
    counts it as. `models` None: any. `parent` is BLAKE3 of the envelope before. A link has a `holder` or an `audience`, or both.
    """

    id: bytes
    account: bytes
    scopes: list[str]
    issued: int
    expires: int
    audience: str | None = None
    models: list[str] | None = None
    holder: bytes | None = None
    parent: bytes | None = None
    name: str | None = None
    tier: str | None = None


class Token(Record):
    links: list[bytes]


class SignedRequest(Record):
    """A request vouched for by an API key instead of a bearer: in the header `Authorization: MF1 base64url`.

    The signature (domain mf/request/1) covers `request_message`. `links` is the first link that names the key, where the node asked isn't
    the key's home.
    """

    key: bytes
    time: int
    nonce: bytes
    signature: bytes
    links: list[bytes] | None = None


@dataclass(frozen=True)
class Claims:
    """What a valid token says. `home` signed the first link; `ids` of all links, any of which may be revoked;
    `issued` when the oldest was made."""

    home: PeerId
    account: bytes
    ids: tuple[bytes, ...]
    scopes: frozenset[str]
    models: frozenset[str] | None
    issued: int
    expires: int
    name: str | None
    tier: str | None
    everywhere: bool = False


def seal_link(key: Ed25519PrivateKey, link: Link) -> bytes:
    return seal(key, TOKEN_DOMAIN, link)


def narrow(key: Ed25519PrivateKey, parent: bytes, link: Link) -> bytes:
    """The next link after the envelope `parent`, signed by that one's holder."""
    return seal_link(key, msgspec.structs.replace(link, parent=digest(parent)))


def token_text(links: list[bytes]) -> str:
    return TOKEN_PREFIX + _encode(pack(Token(links=links)))


def parse_token(text: str) -> list[bytes]:
    """The links of a token's text, unchecked; `Unauthorized` for what isn't one."""
    if not text.startswith(TOKEN_PREFIX) or len(text) > limits.MAX_TOKEN_TEXT:
        raise Unauthorized("not a token of this protocol")
    try:
        links = unpack(_decode(text[len(TOKEN_PREFIX) :]), Token, "token", limits.MAX_TOKEN_TEXT).links
    except BadInput:
        raise Unauthorized("the token is broken: cut short, or a letter changed") from None
    if not 1 <= len(links) <= limits.MAX_TOKEN_LINKS:
        raise Unauthorized(f"a token has 1 to {limits.MAX_TOKEN_LINKS} links, not {len(links)}")
    return links


def open_token(text: str, me: PeerId, now: float) -> Claims:
    """The claims of a token sent to node `me`; `Unauthorized` says which rule it breaks. Whether it is revoked is for the caller."""
    claims, last = follow(parse_token(text), now)
    if last.holder is not None:
        raise Unauthorized("the token ends in a link for a key's own use", hint="narrow it to this node first, without a holder")
    if last.audience != me and not claims.everywhere:
        raise Unauthorized("the token is for another node", hint=f"narrow the key to {me}")
    return claims


def follow(links: list[bytes], now: float) -> tuple[Claims, Link]:
    """The claims at the end of a chain and its last link, signatures and every rule checked; its audience is for the caller."""
    before: Link | None = None
    home, ids, issued = PeerId(""), [], int(now)
    for number, envelope in enumerate(links):
        signer, link = _opened(envelope)
        _check_link(link, now)
        if before is None:
            home = signer
        else:
            _check_next(before, signer, link, links[number - 1])
            link = _inherited(before, link)
        ids.append(link.id)
        issued = min(issued, link.issued)
        before = link
    assert before is not None
    models = None if before.models is None else frozenset(before.models)
    scopes, everywhere = frozenset(before.scopes), before.audience == EVERYWHERE
    return Claims(home, before.account, tuple(ids), scopes, models, issued, before.expires, before.name, before.tier, everywhere), before


def _opened(envelope: bytes) -> tuple[PeerId, Link]:
    try:
        return open_sealed(envelope, TOKEN_DOMAIN, Link, limits.MAX_TOKEN_TEXT)
    except BadInput as error:
        raise Unauthorized(f"the token doesn't hold: {error.message[:160]}") from None


def _check_link(link: Link, now: float) -> None:
    if len(link.id) != 16 or len(link.account) != 32 or (link.holder is not None and len(link.holder) != 32):
        raise Unauthorized("token: an id has 16 bytes, keys have 32")
    if len(link.scopes) > len(SCOPES) or not set(link.scopes) <= set(SCOPES):
        raise Unauthorized(f"token: scopes are {', '.join(SCOPES)}")
    if len(link.models or ()) > limits.MAX_TOKEN_MODELS or not all(len(model) <= limits.MAX_NAME for model in link.models or ()):
        raise Unauthorized(f"token: at most {limits.MAX_TOKEN_MODELS} models, each a name")
    if not all(word is None or _WORD.match(word) for word in (link.name, link.tier)):
        raise Unauthorized("token: name and tier are plain words")
    if link.holder is None and link.audience is None:
        raise Unauthorized("token: a link names a node, or a key that may narrow it")
    _check_time(link, now)
    _check_audience(link)


def _check_audience(link: Link) -> None:
    if link.audience is None:
        return
    if link.audience != EVERYWHERE:
        try:
            public_from_peer(link.audience)
        except BadInput:
            raise Unauthorized("token: the audience is a PeerID") from None
    elif not set(link.scopes) <= PUBLIC_SCOPES:
        raise Unauthorized(f"token: a swarm-wide key may do {' and '.join(sorted(PUBLIC_SCOPES))}, nothing else")


def _check_time(link: Link, now: float) -> None:
    longest = limits.TOKEN_LIFETIME
    if link.audience == EVERYWHERE:
        longest = limits.SWARM_KEY_LIFETIME
    elif link.holder is not None:
        longest = limits.KEY_LINK_LIFETIME
    if not 0 <= link.issued <= link.expires < 1 << 53 or link.expires - link.issued > longest:
        raise Unauthorized(f"token: a link like this lives at most {longest} s")
    if link.issued > now + limits.CLOCK_TOLERANCE:
        raise Unauthorized("the token is from the future", hint="set the clock of the machine that made it")
    if link.expires <= now:
        raise Unauthorized("the token has expired", hint="make a new one from the key, or ask its home")


def _check_next(before: Link, signer: PeerId, link: Link, envelope: bytes) -> None:
    if before.holder is None or signer != peer_from_public(before.holder):
        raise Unauthorized("the token's chain breaks: a link isn't signed by the holder of the one before")
    if link.parent != digest(envelope):
        raise Unauthorized("the token's chain breaks: a link belongs to another one")
    if link.account != before.account or link.expires > before.expires or not set(link.scopes) <= set(before.scopes):
        raise Unauthorized("the token widens: account, time or scopes go beyond the link before")
    if before.models is not None and (link.models is None or not set(link.models) <= set(before.models)):
        raise Unauthorized("the token widens: its models go beyond the link before")
    if before.audience not in (None, EVERYWHERE) and link.audience != before.audience:
        raise Unauthorized("the token widens: its audience isn't the link's before")
    if before.audience == EVERYWHERE and not set(link.scopes) <= PUBLIC_SCOPES:
        raise Unauthorized("the token widens: a swarm-wide key is for public inference")


def _inherited(before: Link, link: Link) -> Link:
    """Name and tier are the home's word alone: what a later link says of them isn't heard."""
    return msgspec.structs.replace(link, name=before.name, tier=before.tier)


def request_message(request: SignedRequest, audience: PeerId, method: str, target: str, body_hash: bytes) -> bytes:
    """What a signed request's signature covers. `target` is path and query as sent; `body_hash` BLAKE3 of the body, of none too."""
    return pack([audience, method.upper(), target, body_hash, request.time, request.nonce])


def sign_request(
    key: Ed25519PrivateKey, audience: PeerId, method: str, target: str, body: bytes, at: int, nonce: bytes, links: list[bytes] | None = None
) -> str:
    """The value of the `Authorization` header."""
    public = public_from_peer(peer_of(key))
    plain = SignedRequest(key=public, time=at, nonce=nonce, signature=b"", links=links)
    message = request_message(plain, audience, method, target, digest(body))
    signature = key.sign(REQUEST_DOMAIN.encode() + b"\x00" + message)
    return "MF1 " + _encode(pack(msgspec.structs.replace(plain, signature=signature)))


def parse_signed_request(text: str) -> SignedRequest:
    """From the header's value after `MF1 `; `Unauthorized` for what isn't one."""
    if len(text) > limits.MAX_TOKEN_TEXT:
        raise Unauthorized("the signed request's header is too long")
    try:
        made = unpack(_decode(text), SignedRequest, "signed request", limits.MAX_TOKEN_TEXT)
    except BadInput:
        raise Unauthorized("the signed request's header is broken") from None
    if len(made.key) != 32 or len(made.nonce) != 16 or len(made.signature) != 64 or not 0 <= made.time < 1 << 53:
        raise Unauthorized("signed request: key 32 bytes, nonce 16, signature 64")
    if len(made.links or ()) > limits.MAX_TOKEN_LINKS:
        raise Unauthorized(f"signed request: at most {limits.MAX_TOKEN_LINKS} links")
    return made


def check_signed_request(request: SignedRequest, audience: PeerId, method: str, target: str, body: bytes, now: float) -> None:
    """`Unauthorized` where time or signature don't hold. Whether the nonce was seen before is for the caller."""
    if abs(now - request.time) > limits.CLOCK_TOLERANCE:
        raise Unauthorized(f"the signed request's time is more than {limits.CLOCK_TOLERANCE} s off")
    message = request_message(request, audience, method, target, digest(body))
    if not verify_bytes(peer_from_public(request.key), REQUEST_DOMAIN, message, request.signature):
        raise Unauthorized("the request's signature doesn't hold: method, path, body, time or node differ from what was signed")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    """Strict: one spelling for each value."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise BadInput("not base64url") from None
    if _encode(data) != text:
        raise BadInput("not canonical base64url")
    return data
