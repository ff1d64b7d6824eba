"""The owner's allow and deny lists over HTTP: his alone to change, in force at once, told clearly, logged."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

from node.accounts.api_keys import KeyRequest
from node.accounts.caller_rules import CallerRules
from node.http import account_schemas as schemas
from tests.node.http.test_access import CHAT, Keyed, KeyedSite, bearer, keyed

__all__ = ["keyed"]
LISTS = "/api/v1/callers"


async def owner_of(site: KeyedSite) -> dict[str, str]:
    _key, text = await site.home.accounts.keys.make(None, KeyRequest("owner's", ["admin", "inference", "models:read"]))
    return bearer(text)


async def put(site: KeyedSite, owner: dict[str, str], who: str, which: str) -> schemas.CallerLists:
    reply, raw = await site.call("PUT", LISTS, json={"who": who, "list": which}, headers=owner)
    assert reply.status == 200, raw
    return msgspec.convert(msgspec.json.decode(raw)["data"], schemas.CallerLists)


async def status(site: KeyedSite, headers: dict[str, str] | None = None, path: str = "/v1/chat/completions") -> tuple[int, Any]:
    reply, body = await site.post(path, CHAT, headers=headers)
    return reply.status, body


async def test_an_account_is_kept_out_and_let_in_again_without_a_restart(keyed: Keyed, caplog: pytest.LogCaptureFixture) -> None:
    site = await keyed()
    owner, made = await owner_of(site), await site.register()
    mine, other = bearer(made["api_key"]), bearer((await site.register("bob"))["api_key"])
    told = await put(site, owner, made["username"], "deny")
    assert [(line.name, line.fixed) for line in told.deny] == [(made["username"], False)]
    with caplog.at_level(logging.WARNING, "node.accounts.caller_rules"):
        found, body = await status(site, mine)
    assert (found, body["error"]["code"]) == (403, "forbidden")
    assert body["error"]["message"].startswith(f"this node's owner doesn't let {made['username']} in: it is on its deny list")
    logged = [record.__dict__["event"] for record in caplog.records if record.name == "node.accounts.caller_rules"]
    assert logged == ["caller_refused"]
    assert (await site.get("/api/v1/users/me", headers=mine))[0] == 403
    assert [(await status(site, one))[0] for one in (other, owner)] == [200, 200]
    assert (await site.call("DELETE", LISTS, json={"who": made["username"]}, headers=owner))[0].status == 200
    assert (await status(site, mine))[0] == 200
    events = [entry for entry in await site.home.journal.read(10) if entry["event"] == "caller_rule"]
    assert [entry["list"] for entry in events] == ["none", "deny"]


async def test_an_allow_list_leaves_logins_and_pages_but_no_new_accounts(keyed: Keyed) -> None:
    site = await keyed()
    owner, made = await owner_of(site), await site.register()
    other = bearer((await site.register("bob"))["api_key"])
    await put(site, owner, made["username"], "allow")
    assert [(await status(site, one))[0] for one in (bearer(made["api_key"]), other)] == [200, 403]
    reply, body = await site.post("/api/v1/auth/register", {"username": "eve", "email": "e@example.org", "password": "long enough 1"})
    assert (reply.status, "isn't on its allow list" in body["error"]["message"]) == (403, True)
    for path in ("/", "/docs", "/health"):
        assert (await site.call("GET", path))[0].status == 200
    await put(site, owner, "127.0.0.0/8", "allow")
    assert (await status(site, other))[0] == 200


async def test_an_address_is_refused_everything_before_its_credential_is_read(keyed: Keyed) -> None:
    site = await keyed(behind_proxy=True)
    owner = await owner_of(site)
    await put(site, owner, "203.0.113.0/24", "deny")
    far = {"X-Forwarded-For": "203.0.113.9"}
    for headers in (far, far | bearer("mf_live_nonsense")):
        for path in ("/", "/api/v1/models", "/health"):
            assert (await site.call("GET", path, headers=headers))[0].status == 403
    assert (await site.call("GET", "/", headers={"X-Forwarded-For": "203.0.114.9"}))[0].status == 200


async def test_identities_of_other_homes_by_key_and_by_home(keyed: Keyed) -> None:
    site, home = await keyed(), await keyed()
    owner = await owner_of(site)
    user = await home.home.accounts.register("bob", "b@example.org", "long enough 1", "address:192.0.2.9")
    token = bearer(home.home.accounts.sessions.token(user, bytes(16), site.home.peer, ["inference"], None, 60))
    assert (await status(site, token))[0] == 200
    for who in (user.full_name, user.public.hex(), home.home.peer):
        await put(site, owner, who, "deny")
        assert (await status(site, token))[0] == 403
        await site.call("DELETE", LISTS, json={"who": who}, headers=owner)
        assert (await status(site, token))[0] == 200


async def test_only_the_owner_changes_them_and_only_to_what_is_a_caller(keyed: Keyed) -> None:
    site = await keyed()
    owner, mine = await owner_of(site), bearer((await site.register())["api_key"])
    for method in ("GET", "PUT", "DELETE"):
        body = None if method == "GET" else {"who": "192.0.2.1", "list": "deny"} if method == "PUT" else {"who": "192.0.2.1"}
        assert (await site.call(method, LISTS, headers=mine, json=body))[0].status == 403
        assert (await site.call(method, LISTS, json=body))[0].status == 401
    for who, found in (("nobody", 400), ("nobody@abcdefgh", 404), ("10.0.0.0/99", 400)):
        assert (await site.call("PUT", LISTS, json={"who": who, "list": "deny"}, headers=owner))[0].status == found
    assert (await site.call("PUT", LISTS, json={"who": "192.0.2.1", "list": "maybe"}, headers=owner))[0].status == 400
    assert (await site.call("DELETE", LISTS, json={"who": "192.0.2.1"}, headers=owner))[0].status == 404
    assert (await site.get(LISTS, headers=owner))[1]["data"] == {"allow": [], "deny": []}


async def test_this_machines_programs_are_never_kept_out_but_a_denied_account_is(keyed: Keyed) -> None:
    site = await keyed(open=True, local=True)
    made = await site.register()
    access = site.server._access
    assert access is not None
    object.__setattr__(access, "rules", CallerRules(allow=["192.0.2.7"], deny=["127.0.0.1"]))
    assert [(await status(site, headers))[0] for headers in ({}, bearer(made["api_key"]))] == [200, 200]
    access.rules.put(site.home.accounts.users.all()[0].public.hex(), "deny")
    assert [(await status(site, headers))[0] for headers in ({}, bearer(made["api_key"]))] == [200, 403]
