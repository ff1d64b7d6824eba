"""Every way to show a credential that doesn't hold, over HTTP: 401, logged without it, and nothing let in."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.accounts.credentials import signing_key
from node.accounts.totp import STEP, code_at
from node.logs import JsonFormatter
from protocol import tokens
from protocol.framing import pack
from protocol.ids import PeerId, public_from_peer
from protocol.signing import peer_of, seal
from tests.node.accounts.world import PASSWORD
from tests.node.http.conftest import Site, Start
from tests.node.http.test_access import CHAT, Keyed, KeyedSite, bearer, keyed

__all__ = ["keyed"]
PATH = "/v1/chat/completions"
BODY = msgspec.json.encode(CHAT)
ELSEWHERE = peer_of(Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32))
HOME, HOLDER = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (7, 8))


def public(key: Ed25519PrivateKey) -> bytes:
    return public_from_peer(peer_of(key))


def link(me: PeerId, **more: Any) -> tokens.Link:
    now = int(time.time())
    given = {"id": os.urandom(16), "account": bytes(32), "scopes": ["inference"], "issued": now, "expires": now + 600, "audience": me}
    return tokens.Link(**{**given, **more})


def token(me: PeerId, **more: Any) -> str:
    return tokens.token_text([tokens.seal_link(HOME, link(me, **more))])


def chain(me: PeerId, first: dict[str, Any], last: dict[str, Any], key: Ed25519PrivateKey = HOLDER) -> str:
    parent = tokens.seal_link(HOME, link(me, **{"holder": public(HOLDER), "audience": None, **first}))
    return tokens.token_text([parent, tokens.narrow(key, parent, link(me, **last))])


def claiming(me: PeerId, whose: PeerId) -> str:
    """A stranger's link under another home's name."""
    envelope = tokens.seal_link(HOME, link(me))
    return tokens.token_text([envelope.replace(peer_of(HOME).encode(), whose.encode())])


def flipped(text: str) -> str:
    middle = len(text) // 2
    return text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :]


NOW = time.time
TOKENS: dict[str, Callable[[PeerId], str]] = {
    "expired": lambda me: token(me, issued=int(NOW()) - 600, expires=int(NOW()) - 1),
    "from the future": lambda me: token(me, issued=int(NOW()) + 900, expires=int(NOW()) + 1_200),
    "for too long": lambda me: token(me, expires=int(NOW()) + 7_200),
    "another node's": lambda me: token(ELSEWHERE),
    "tampered": lambda me: flipped(token(me)),
    "cut": lambda me: token(me)[:-5],
    "longer": lambda me: token(me) + "A",
    "no link": lambda me: tokens.token_text([]),
    "five links": lambda me: tokens.token_text([tokens.seal_link(HOME, link(me))] * 5),
    "unsigned": lambda me: tokens.token_text([pack(link(me))]),
    "under another's name": lambda me: claiming(me, me),
    "of another domain": lambda me: tokens.token_text([seal(HOME, "mf/card/1", link(me))]),
    "downgraded to an older version": lambda me: tokens.token_text([seal(HOME, "mf/token/0", link(me))]),
    "a link for a key's own use": lambda me: token(me, holder=public(HOLDER), audience=None),
    "narrowed by a stranger": lambda me: chain(me, {}, {}, key=HOME),
    "widened in scopes": lambda me: chain(me, {"scopes": ["models:read"]}, {}),
    "widened in time": lambda me: chain(me, {"expires": int(NOW()) + 60}, {"expires": int(NOW()) + 120}),
    "widened in models": lambda me: chain(me, {"models": ["a/b@1"]}, {}),
    "widened in audience": lambda me: chain(me, {"audience": ELSEWHERE}, {}),
    "another's account": lambda me: chain(me, {}, {"account": bytes([1]) * 32}),
    "alg none": lambda me: "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJhbm4iLCJzY29wZSI6ImFkbWluIn0.",
    "alg HS256": lambda me: "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl",
    "a key of no home": lambda me: "mf_live_" + "A" * 60,
    "nothing": lambda me: "mf_tok_",
}


def refusals(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    return [line for line in lines if line.get("event") == "http_request" and line.get("status") == 401]


async def refused(site: KeyedSite, head: str, caplog: pytest.LogCaptureFixture, why: str = "") -> None:
    site.home.accounts.guessing._misses.clear()
    caplog.clear()
    reply, raw = await site.call("POST", PATH, data=BODY, headers={"Authorization": head, "Content-Type": "application/json"})
    assert reply.status == 401, raw
    assert reply.headers["WWW-Authenticate"].startswith("Bearer")
    assert why in json.loads(raw)["error"]["message"]
    assert not site.gateway.asked
    [line] = refusals(caplog)
    assert (line["path"], line["error"]) == (PATH, "unauthorized")
    secret = head.partition(" ")[2]
    assert not secret or secret[:40] not in "".join(JsonFormatter().format(record) for record in caplog.records)


@pytest.mark.parametrize("name", TOKENS)
async def test_tokens_that_dont_hold(keyed: Keyed, caplog: pytest.LogCaptureFixture, name: str) -> None:
    caplog.set_level(logging.DEBUG)
    site = await keyed()
    await refused(site, f"Bearer {TOKENS[name](site.home.peer)}", caplog)
    assert (await site.post(PATH, CHAT, headers=bearer(token(site.home.peer))))[0].status == 200, "one that holds is let in"
    assert (await site.post(PATH, CHAT, headers=bearer(chain(site.home.peer, {}, {}))))[0].status == 200


def signed(me: PeerId, key: Ed25519PrivateKey, **more: Any) -> str:
    given = {"method": "POST", "target": PATH, "body": BODY, "at": int(time.time()), "nonce": os.urandom(16)} | more
    return tokens.sign_request(key, more.pop("node", me), given["method"], given["target"], given["body"], given["at"], given["nonce"])


@pytest.mark.parametrize(
    "changed",
    [{"body": BODY.replace(b"hi", b"ho")}, {"body": b""}, {"method": "GET"}, {"target": "/v1/completions"}, {"target": PATH + "?a=1"},
     {"node": ELSEWHERE}, {"at": -400}, {"at": 400}],
    ids=["body", "no body", "method", "path", "query", "node", "old", "early"],
)  # fmt: skip
async def test_what_was_signed_for_another_request(keyed: Keyed, caplog: pytest.LogCaptureFixture, changed: dict[str, Any]) -> None:
    """And it spoils nothing: its nonce is still good for the request it was made for."""
    caplog.set_level(logging.DEBUG)
    site = await keyed()
    key, nonce = signing_key((await site.register())["api_key"]), os.urandom(16)
    if "at" in changed:  # seconds from now
        changed = {"at": int(time.time()) + changed["at"]}
    await refused(
        site, signed(site.home.peer, key, nonce=nonce, **changed), caplog, "signed request's time" if "at" in changed else "doesn't hold"
    )
    good = {"Authorization": signed(site.home.peer, key, nonce=nonce), "Content-Type": "application/json"}
    assert (await site.call("POST", PATH, data=BODY, headers=good))[0].status == 200
    site.gateway.asked.clear()
    await refused(site, good["Authorization"], caplog)


async def test_signatures_of_others_and_other_schemes(keyed: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    site = await keyed()
    head = signed(site.home.peer, signing_key((await site.register())["api_key"]))
    stranger = signed(site.home.peer, HOLDER)
    for wrong in (stranger, flipped(head), head.replace("MF1 ", "MF0 "), head.replace("MF1 ", "MF2 "), head.replace("MF1 ", "Bearer "),
                  "MF1 ", "MF1 " + "A" * 20_000, "Basic YW5uOnBhc3N3b3Jk", "Digest username=ann", "Bearer"):  # fmt: skip
        if len(wrong) < 8_000:
            await refused(site, wrong, caplog)
    reply, _ = await site.call("POST", PATH, data=BODY, headers={"Authorization": "MF1 " + "A" * 20_000})
    assert reply.status in (400, 431), "a head that long is none"
    assert not site.gateway.asked


async def test_a_stolen_token_guesses_neither_password_nor_code(keyed: Keyed) -> None:
    """What wants the password again counts wrong ones like a login; codes, new ones and recovery ones, too."""
    site = await keyed()
    mine = bearer((await site.register())["api_key"])
    guesses = [(await site.call("DELETE", "/api/v1/users/me", json={"password": f"wrong {n}"}, headers=mine))[0].status for n in range(8)]
    assert (guesses[:5], set(guesses[5:])) == ([401] * 5, {429})
    site.home.accounts.guessing._misses.clear()
    _, body = await site.post("/api/v1/auth/totp", {"password": PASSWORD}, headers=mine)
    code = code_at(body["data"]["secret"], int(time.time()) // STEP)
    wrong = [f"{(int(code) + n) % 10**6:06d}" for n in range(3, 12)]
    guesses = [(await site.post("/api/v1/auth/totp/confirm", {"totp_code": one}, headers=mine))[0].status for one in wrong]
    assert (guesses[:5], set(guesses[5:])) == ([401] * 5, {429})
    site.home.accounts.guessing._misses.clear()
    assert (await site.post("/api/v1/auth/totp/confirm", {"totp_code": code}, headers=mine))[0].status == 200
    off = [
        (await site.call("DELETE", "/api/v1/auth/totp", json={"password": PASSWORD, "totp_code": f"aaaaaaaa-{n:08d}"}, headers=mine))[
            0
        ].status
        for n in range(8)
    ]
    assert (off[:5], set(off[5:])) == ([401] * 5, {429})
    assert site.home.accounts.users.all()[0].totp_on


@pytest.mark.parametrize("depth", [500, 20_000])
async def test_deep_json_where_anything_may_stand(start: Start, depth: int) -> None:
    site: Site = await start()
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    tool = b'[{"type": "function", "function": {"name": "f", "parameters": %s}}]' % deep
    form = b'{"type": "json_schema", "json_schema": {"name": "x", "schema": %s}}' % deep
    for field, value in ((b"tools", tool), (b"response_format", form), (b"metadata", deep), (b"logit_bias", deep)):
        body = b'{"model": "ann/demo@1", "messages": [{"role": "user", "content": "x"}], "%s": %s}' % (field, value)
        reply, raw = await site.call("POST", PATH, data=body, headers={"Content-Type": "application/json"})
        assert reply.status in (200, 400), (field, raw[:300])
    assert (await site.get("/health"))[0] == 200
