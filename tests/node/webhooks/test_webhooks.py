"""Webhooks: signed, tried again, durable, and never sent into the owner's networks unless he says so."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from node.accounts.database import Database
from node.webhooks import deliver
from node.webhooks.book import MOST_EACH, WebhookBook
from node.webhooks.deliver import PublicResolver, Webhooks
from node.webhooks.target import check_url, is_public
from protocol.errors import BadInput, Busy, Forbidden, NotFound
from tests.support.wait import until


class Receiver:
    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.port = 0

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        status = self.answers.pop(0) if self.answers else 200
        return web.Response(status=status, headers={"Location": f"http://127.0.0.1:{self.port}/elsewhere"} if status == 302 else None)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made, app = Receiver(), web.Application()
    app.router.add_post("/hook", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(tmp_path / "accounts.db")
    await made.open()
    yield made
    made.close()


@pytest.fixture
async def running(database: Database, receiver: Receiver) -> AsyncIterator[Webhooks]:
    made = Webhooks(WebhookBook(database), [f"127.0.0.1:{receiver.port}"])
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_notice_is_signed_and_arrives_once(running: Webhooks, receiver: Receiver) -> None:
    hook = await running.book.add("ann", f"http://127.0.0.1:{receiver.port}/hook", ["batch.finished"])
    await running.book.add("ann", f"http://127.0.0.1:{receiver.port}/hook", ["upload.failed"])
    await running.book.add("bob", f"http://127.0.0.1:{receiver.port}/hook", ["batch.finished"])
    await running.tell("ann", "batch.finished", {"batch_id": "batch_1"})
    await until(lambda: bool(receiver.got), 5, "it arrives")
    headers, body = receiver.got[0]
    assert json.loads(body)["data"] == {"batch_id": "batch_1"}
    at, v1 = (part.partition("=")[2] for part in headers["MF-Signature"].split(","))
    assert v1 == hmac.new(hook.secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["MF-Event"] == "batch.finished"
    await asyncio.sleep(0.1)
    assert len(receiver.got) == 1
    assert await running.book.next_due() is None


@pytest.mark.parametrize("first", [500, 302, 404])
async def test_what_isnt_taken_is_tried_again_with_the_same_id(
    running: Webhooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(deliver, "AGAIN_AFTER", (0.01, 0.01))
    receiver.answers = [first]
    await running.book.add("ann", f"http://127.0.0.1:{receiver.port}/hook", ["upload.failed"])
    await running.tell("ann", "upload.failed", {})
    await until(lambda: len(receiver.got) == 2, 5, "the second try")
    assert len({headers["MF-Delivery"] for headers, _ in receiver.got}) == 1


async def test_it_is_given_up_after_the_last_try(running: Webhooks, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliver, "AGAIN_AFTER", (0.01, 0.01))
    receiver.answers = [500] * 9
    await running.book.add("ann", f"http://127.0.0.1:{receiver.port}/hook", ["upload.failed"])
    await running.tell("ann", "upload.failed", {})

    async def gone() -> bool:
        return await running.book.next_due() is None

    for _ in range(200):
        if await gone():
            break
        await asyncio.sleep(0.02)
    assert len(receiver.got) == 3


async def test_what_wasnt_delivered_is_after_a_restart(database: Database, receiver: Receiver) -> None:
    before = Webhooks(WebhookBook(database))
    await before.book.add("ann", f"http://127.0.0.1:{receiver.port}/hook", ["upload.finished"])
    await before.tell("ann", "upload.finished", {})
    after = Webhooks(WebhookBook(database), ["127.0.0.1"])
    task = asyncio.create_task(after.run())
    await until(lambda: bool(receiver.got), 5, "it arrives")
    task.cancel()


async def test_nothing_goes_to_a_private_address_though_it_was_entered(
    database: Database, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "AGAIN_AFTER", ())
    webhooks = Webhooks(WebhookBook(database))
    for url in (f"http://127.0.0.1:{receiver.port}/hook", f"http://localhost:{receiver.port}/hook"):
        await webhooks.book.add("ann", url, ["upload.failed"])
    await webhooks.tell("ann", "upload.failed", {})
    task = asyncio.create_task(webhooks.run())
    for _ in range(100):
        if await webhooks.book.next_due() is None:
            break
        await asyncio.sleep(0.02)
    task.cancel()
    assert await webhooks.book.next_due() is None
    assert receiver.got == []


async def test_a_name_that_resolves_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def inside(*_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", ("10.0.0.7", 80)), (2, 1, 6, "", ("93.184.216.34", 80))]

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "getaddrinfo", inside)
    assert [one["host"] for one in await PublicResolver(()).resolve("evil.example", 80)] == ["93.184.216.34"]
    assert len(await PublicResolver(("evil.example",)).resolve("evil.example", 80)) == 2


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255",
     "::1",
     "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
     "::127.0.0.1", "not an address"],
)  # fmt: skip
def test_what_is_inside(address: str) -> None:
    assert not is_public(address)


def test_what_is_outside() -> None:
    assert is_public("93.184.216.34")
    assert is_public("2606:4700::1111")


@pytest.mark.parametrize(
    ("url", "error"),
    [("ftp://example.org/", BadInput), ("file:///etc/passwd", BadInput), ("https://", BadInput), ("https://u:p@example.org/", BadInput),
     ("https://example.org:99999/", BadInput), ("https://exa mple.org/\n", BadInput), ("https://" + "a" * 2_050, BadInput),
     ("http://127.0.0.1/", Forbidden), ("http://[::1]/", Forbidden), ("http://2130706433/", Forbidden), ("http://0x7f.1/", Forbidden),
     ("http://0177.0.0.1/", Forbidden), ("http://localhost/", Forbidden), ("http://router/", Forbidden), ("http://a.internal/", Forbidden),
     ("http://localhost./", Forbidden), ("http://169.254.169.254/latest/meta-data", Forbidden)],
)  # fmt: skip
def test_urls_that_are_refused(url: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_url(url, ())


def test_urls_that_are_taken() -> None:
    assert check_url("https://example.org:8443/a?b=c", ()) == "example.org"
    assert check_url("http://127.0.0.1:9000/", ("127.0.0.1:9000",)) == "127.0.0.1"
    with pytest.raises(Forbidden):
        check_url("http://127.0.0.1:9001/", ("127.0.0.1:9000",))


async def test_eight_each_and_only_ones_own(database: Database) -> None:
    book = WebhookBook(database)
    made = [await book.add("ann", "https://example.org/", ["upload.failed"]) for _ in range(MOST_EACH)]
    with pytest.raises(Busy):
        await book.add("ann", "https://example.org/", ["upload.failed"])
    with pytest.raises(NotFound):
        await book.drop("bob", made[0].id)
    await book.enter("ann", "upload.failed", b"{}")
    for one in made:
        await book.drop("ann", one.id)
    assert await book.next_due() is None
