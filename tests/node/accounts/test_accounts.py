"""Accounts, keys and logins of one home, and what another home makes of their tokens."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from node.accounts.allowance import Windows
from node.accounts.api_keys import MAX_KEYS, KeyRequest
from node.accounts.authenticate import Shown
from node.accounts.caller import address_subject
from node.accounts.credentials import key_text, signing_key
from node.accounts.sessions import CodeWanted
from node.accounts.totp import STEP, code_at
from node.accounts.users import User
from protocol import tokens
from protocol.errors import BadInput, Busy, Conflict, Misdirected, NotFound, Unauthorized
from protocol.ids import fingerprint
from tests.node.accounts.world import PASSWORD, FakeSwarm, Home, close_home, open_home

ADDRESS = "address:192.0.2.1"


async def ann(home: Home) -> User:
    return await home.accounts.register("ann", "ann@example.org", PASSWORD, ADDRESS)


async def key_of(home: Home, user: User, *scopes: str, **more: object) -> tuple[str, str]:
    """(text, label) of a new key."""
    key, text = await home.accounts.keys.make(user, KeyRequest("k", scopes or ("inference", "models:read"), **more))  # type: ignore[arg-type]
    return text, key.label


async def test_an_account_outlives_a_restart_and_its_key_with_it(tmp_path: Path, swarm: FakeSwarm) -> None:
    home = await open_home(tmp_path / "h", swarm)
    user = await ann(home)
    text, label = await key_of(home, user)
    gone, _ = await key_of(home, user)
    await home.accounts.keys.revoke(home.accounts.keys.ring.of_user(user.id)[1])
    home.accounts.usage.add(user.public.hex(), ADDRESS, "mfm1x", 7, 3)
    await close_home(home)
    swarm.said.clear()
    again = await open_home(tmp_path / "h", swarm)
    caller = await again.caller(f"Bearer {text}")
    assert (caller.name, caller.user, f"key_{caller.key.hex()}") == (f"ann@{fingerprint(user.public)}", user.id, label)
    with pytest.raises(Unauthorized):
        await again.caller(f"Bearer {gone}")
    assert swarm.said[again.peer][0], "what was revoked is told to the swarm again"
    assert again.accounts.windows.month(ADDRESS, time.time()) == 10
    assert (tmp_path / "h" / "accounts.db").stat().st_mode & 0o077 == 0
    raw = b"".join(path.read_bytes() for path in (tmp_path / "h").iterdir())
    assert text.encode() not in raw
    assert PASSWORD.encode() not in raw
    await close_home(again)


@pytest.mark.parametrize(
    ("name", "email", "password"),
    [
        ("a", "a@b.c", PASSWORD),
        ("../x", "a@b.c", PASSWORD),
        ("ann", "nobody", PASSWORD),
        ("ann", "a@b.c", "short"),
        ("ann", "a@b.c", "a" * 20),
    ],
)
async def test_what_cannot_be_registered(home: Home, name: str, email: str, password: str) -> None:
    with pytest.raises(BadInput):
        await home.accounts.register(name, email, password, ADDRESS)


async def test_a_name_is_taken_once_whatever_its_case(home: Home) -> None:
    await ann(home)
    with pytest.raises(Conflict):
        await home.accounts.register("ANN", "other@example.org", PASSWORD, ADDRESS)


async def test_registrations_of_one_address_are_bounded(home: Home) -> None:
    for number in range(20):
        await home.accounts.register(f"user{number}", "u@example.org", PASSWORD, ADDRESS)
    with pytest.raises(Busy) as caught:
        await home.accounts.register("one-more", "u@example.org", PASSWORD, ADDRESS)
    assert caught.value.details["retry_after"] > 3_000
    await home.accounts.register("elsewhere", "u@example.org", PASSWORD, "address:192.0.2.9")


async def test_a_login_gives_tokens_and_each_refresh_the_next(home: Home) -> None:
    user = await ann(home)
    first = await home.accounts.sessions.login("ann", PASSWORD, None, ADDRESS)
    caller = await home.caller(f"Bearer {first.access}")
    assert (caller.user, "account" in caller.scopes, "admin" in caller.scopes) == (user.id, True, False)
    second = await home.accounts.sessions.refresh(first.refresh, ADDRESS)
    third = await home.accounts.sessions.refresh(second.refresh, ADDRESS)
    with pytest.raises(Unauthorized):
        await home.accounts.sessions.refresh(first.refresh, ADDRESS)
    for refresh in (second.refresh, third.refresh):
        with pytest.raises(Unauthorized):
            await home.accounts.sessions.refresh(refresh, ADDRESS)
    with pytest.raises(Unauthorized, match="revoked"):
        await home.caller(f"Bearer {third.access}")


async def test_logging_out_ends_the_access_token_too(home: Home) -> None:
    await ann(home)
    made = await home.accounts.sessions.login("ann", PASSWORD, None, ADDRESS)
    caller = await home.caller(f"Bearer {made.access}")
    await home.accounts.sessions.logout(caller.key)
    with pytest.raises(Unauthorized):
        await home.caller(f"Bearer {made.access}")


async def test_guessing_a_password_has_to_wait(home: Home) -> None:
    await ann(home)
    for _ in range(5):
        with pytest.raises(Unauthorized):
            await home.accounts.sessions.login("ann", "wrong " + PASSWORD, None, ADDRESS)
    with pytest.raises(Busy) as caught:
        await home.accounts.sessions.login("ann", PASSWORD, None, ADDRESS)
    assert caught.value.details["retry_after"] >= 1
    assert await home.accounts.sessions.login("ann", PASSWORD, None, "address:192.0.2.7"), "its owner isn't locked out"


async def test_one_time_codes(home: Home) -> None:
    user = await ann(home)
    made = await home.accounts.second_factor.begin(user, "ModelFloat")
    assert (await home.accounts.sessions.login("ann", PASSWORD, None, ADDRESS)).user.id == user.id, "not before it is confirmed"
    code = code_at(made.secret, int(time.time()) // STEP)
    codes = await home.accounts.second_factor.confirm(home.accounts.users.get(user.id), code)
    login = home.accounts.sessions.login
    with pytest.raises(CodeWanted):
        await login("ann", PASSWORD, None, ADDRESS)
    with pytest.raises(Unauthorized):
        await login("ann", PASSWORD, code, ADDRESS)
    assert await login("ann", PASSWORD, code_at(made.secret, int(time.time()) // STEP + 1), ADDRESS)
    assert await login("ann", PASSWORD, codes[3].upper().replace("-", " "), ADDRESS)
    with pytest.raises(Unauthorized):
        await login("ann", PASSWORD, codes[3], ADDRESS)
    with pytest.raises(Unauthorized):
        await login("ann", PASSWORD, "000000", ADDRESS)
    await home.accounts.second_factor.off(home.accounts.users.get(user.id))
    assert await login("ann", PASSWORD, None, "address:192.0.2.8")


async def test_keys_end(home: Home) -> None:
    user = await ann(home)
    text, label = await key_of(home, user)
    expired, _ = await key_of(home, user, expires=time.time() + 60)
    key = home.accounts.keys.find(user.id, label)
    assert (await home.caller(f"Bearer {text}")).scopes == {"inference", "models:read"}
    await home.accounts.keys.revoke(key)
    for bad in (text, key_text(home.peer, bytes(32)), text[:-1], text + "A", "mf_live_", "mf_live_Ann"):
        with pytest.raises(Unauthorized):
            await home.caller(f"Bearer {bad}")
    home.accounts.authenticator._now = lambda: time.time() + 61
    with pytest.raises(Unauthorized, match="expired"):
        await home.caller(f"Bearer {expired}")
    with pytest.raises(NotFound):
        home.accounts.keys.find("usr_other", label)


async def test_what_is_no_credential_of_ours_is_none(home: Home) -> None:
    for given in (None, "", "Bearer sk-something", "Basic YTpi", "Bearer"):
        assert await home.caller(given) is None


async def test_keys_of_an_account_are_bounded(home: Home) -> None:
    user = await ann(home)
    for _ in range(MAX_KEYS):
        await key_of(home, user)
    with pytest.raises(BadInput):
        await key_of(home, user)


@pytest.mark.parametrize(
    ("scopes", "more"),
    [
        (["admin"], {}),
        (["account"], {"audience": "*"}),
        ([], {}),
        (["inference"], {"audience": "me"}),
        (["inference"], {"models": ["m"] * 17}),
    ],
)
async def test_keys_that_cannot_be_made(home: Home, scopes: list[str], more: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        await home.accounts.keys.make(await ann(home), KeyRequest("k", scopes, **more))  # type: ignore[arg-type]


def narrowed(home: Home, user: User, text: str, audience: str, **more: object) -> str:
    """What a client does by itself: the home's word for its key, narrowed to a node."""
    key = signing_key(text)
    ring = home.accounts.keys.ring
    entry = next(one for one in ring.of_user(user.id) if ring.by_seed(key.private_bytes_raw()) is one)
    first = home.accounts.keys.word_for(entry, user, time.time())
    now = int(time.time())
    fields = {
        "id": b"n" * 16,
        "account": user.public,
        "scopes": ["inference"],
        "issued": now,
        "expires": now + 600,
        "audience": audience,
        **more,
    }
    return tokens.token_text([first, tokens.narrow(key, first, tokens.Link(**fields))])  # type: ignore[arg-type]


async def test_a_key_is_honoured_where_it_is_narrowed_to_and_nowhere_else(home: Home, other: Home) -> None:
    user = await ann(home)
    text, label = await key_of(home, user, "inference", "account")
    token = narrowed(home, user, text, other.peer, scopes=["inference", "account"])
    caller = await other.caller(f"Bearer {token}")
    assert (caller.account, caller.user, caller.scopes) == (user.public, None, {"inference"}), "account is the home's own business"
    with pytest.raises(Unauthorized, match="another node"):
        await home.caller(f"Bearer {token}")
    with pytest.raises(Misdirected) as caught:
        await other.caller(f"Bearer {text}")
    assert text not in str(caught.value)
    await home.accounts.keys.revoke(home.accounts.keys.find(user.id, label))
    with pytest.raises(Unauthorized, match="revoked"):
        await other.caller(f"Bearer {token}")


async def test_a_token_made_at_home_from_a_login(home: Home, other: Home) -> None:
    await ann(home)
    made = await home.accounts.sessions.login("ann", PASSWORD, None, ADDRESS)
    caller = await home.caller(f"Bearer {made.access}")
    token = home.accounts.sessions.token(made.user, caller.key, other.peer, ["inference"], ["m"], 60)
    away = await other.caller(f"Bearer {token}")
    assert (away.name, away.models) == (made.user.full_name, {"m"})
    await home.accounts.sessions.logout(caller.key)
    with pytest.raises(Unauthorized):
        await other.caller(f"Bearer {token}")


async def test_a_swarm_wide_key_is_good_everywhere_for_public_inference(home: Home, other: Home) -> None:
    user = await ann(home)
    key, _ = await home.accounts.keys.make(user, KeyRequest("wide", ("inference",), audience="*"))
    token = home.accounts.keys.swarm_token(key, user, time.time())
    for node in (home, other):
        assert (await node.caller(f"Bearer {token}")).scopes == {"inference"}
    await home.accounts.keys.revoke(key)
    for node in (home, other):
        with pytest.raises(Unauthorized):
            await node.caller(f"Bearer {token}")


async def test_an_expired_token_is_refused_though_it_was_good_before(home: Home, other: Home) -> None:
    user = await ann(home)
    text, _ = await key_of(home, user)
    now = int(time.time())
    token = narrowed(home, user, text, other.peer, issued=now, expires=now + 600)
    assert await other.caller(f"Bearer {token}")
    other.accounts.authenticator._now = lambda: now + 600.0  # type: ignore[method-assign]
    with pytest.raises(Unauthorized, match="expired"):
        await other.caller(f"Bearer {token}")


async def test_only_a_trusted_home_is_heard_about_tiers(home: Home, other: Home, swarm: FakeSwarm) -> None:
    user = await home.accounts.users.set_tier((await ann(home)).id, "contributor")
    text, _ = await key_of(home, user)
    caller = await other.caller(f"Bearer {narrowed(home, user, text, other.peer)}")
    assert (caller.tier, caller.subject) == ("free", ADDRESS)
    swarm.trusts.add(home.peer)
    caller = await other.caller(f"Bearer {narrowed(home, user, text, other.peer)}")
    assert (caller.tier, caller.subject) == ("contributor", f"account:{user.public.hex()}")
    user = await home.accounts.users.set_tier(user.id, "unlimited")
    assert (await other.caller(f"Bearer {narrowed(home, user, text, other.peer)}")).tier == "free"
    await other.accounts.identities.set_tier(other.accounts.identities.named(user.full_name), "supporter")
    assert (await other.caller(f"Bearer {narrowed(home, user, text, other.peer)}")).tier == "supporter"


async def test_signed_requests(home: Home, other: Home) -> None:
    user = await ann(home)
    text, label = await key_of(home, user)
    key, now = signing_key(text), int(time.time())
    head = tokens.sign_request(key, home.peer, "POST", "/v1/x", b"{}", now, b"1" * 16)
    assert (await home.caller(head, method="POST", target="/v1/x", body=b"{}")).user == user.id
    with pytest.raises(Unauthorized, match="before"):
        await home.caller(head, method="POST", target="/v1/x", body=b"{}")
    tampered = tokens.sign_request(key, home.peer, "POST", "/v1/x", b"{}", now, b"2" * 16)
    for bad in (
        {"method": "GET", "target": "/v1/x", "body": b"{}"},
        {"method": "POST", "target": "/v1/y", "body": b"{}"},
        {"method": "POST", "target": "/v1/x", "body": b"{ }"},
    ):
        with pytest.raises(Unauthorized, match="signature"):
            await home.caller(tampered, **bad)
    with pytest.raises(Unauthorized, match="off"):
        await home.caller(tokens.sign_request(key, home.peer, "GET", "/", b"", now - 400, b"3" * 16))
    link = home.accounts.keys.word_for(home.accounts.keys.find(user.id, label), user, now)
    away = tokens.sign_request(key, other.peer, "GET", "/", b"", now, b"4" * 16, [link])
    with pytest.raises(Unauthorized, match="signature"):
        await other.caller(away, body=b"another's")
    assert not other.accounts.identities.all(), "whose link it is didn't ask"
    assert (await other.caller(away)).account == user.public
    with pytest.raises(Unauthorized, match="before"):
        await other.caller(away)
    with pytest.raises(Unauthorized, match="signature"):
        await other.caller(tokens.sign_request(key, home.peer, "GET", "/", b"", now, b"5" * 16, [link]))
    await home.accounts.keys.revoke(home.accounts.keys.find(user.id, label))
    for node in (home, other):
        with pytest.raises(Unauthorized):
            await node.caller(tokens.sign_request(key, node.peer, "GET", "/", b"", now, b"6" * 16, [link]))


async def test_a_key_revoked_while_a_signed_body_comes_is_refused(home: Home) -> None:
    user = await ann(home)
    text, label = await key_of(home, user)

    async def body() -> bytes:
        await home.accounts.keys.revoke(home.accounts.keys.find(user.id, label))
        return b"{}"

    head = tokens.sign_request(signing_key(text), home.peer, "POST", "/v1/x", b"{}", int(time.time()), b"1" * 16)
    with pytest.raises(Unauthorized, match="revoked"):
        await home.accounts.authenticator.caller(Shown(head, "POST", "/v1/x", "192.0.2.1", body))


async def test_wrong_keys_from_one_address_have_to_wait(home: Home) -> None:
    for number in range(30):
        with pytest.raises(Unauthorized):
            await home.caller(f"Bearer {key_text(home.peer, bytes([number]) * 32)}")
    with pytest.raises(Busy):
        await home.caller(f"Bearer {key_text(home.peer, bytes(32))}")
    with pytest.raises(Unauthorized):
        await home.caller(f"Bearer {key_text(home.peer, bytes(32))}", address="192.0.2.2")


async def test_a_deleted_account_leaves_nothing_that_works(home: Home, other: Home) -> None:
    user = await ann(home)
    text, _ = await key_of(home, user)
    token = narrowed(home, user, text, other.peer)
    made = await home.accounts.sessions.login("ann", PASSWORD, None, ADDRESS)
    exported = await home.accounts.export(user)
    assert exported["email"] == "ann@example.org"
    await home.accounts.delete(user)
    for node, credential in ((home, text), (home, made.access), (other, token)):
        with pytest.raises(Unauthorized):
            await node.caller(f"Bearer {credential}")
    for table in ("users", "keys", "families", "recovery", "usage"):
        assert not await home.accounts.database.rows(f"select * from {table}")
    assert (await ann(home)).id != user.id, "the name is free again, for another identity"


async def test_a_thousand_fresh_identities_share_one_allowance(home: Home, other: Home) -> None:
    """Of one address, over keys of two homes: no more requests than one has."""
    windows, now, let_in = Windows(), time.time(), 0
    user = await ann(home)
    for number in range(1000):
        token = home.accounts.sessions.token(user, b"%016d" % number, other.peer, ["inference"], None, 60)
        caller = await other.caller(f"Bearer {token}")
        try:
            windows.begin(caller.subject, caller.tier, now)
            windows.end(caller.subject, now)
            let_in += 1
        except Busy:
            continue
    assert let_in == windows.tier("free").requests_per_hour


def test_one_household_is_one_subject() -> None:
    assert address_subject("2001:db8:1:2:3::1") == address_subject("2001:db8:1:2:ffff::9%eth0") != address_subject("2001:db8:1:3::1")
    assert address_subject("::ffff:192.0.2.1") == address_subject("192.0.2.1") == ADDRESS
    assert address_subject("nonsense") == "address:unknown"
