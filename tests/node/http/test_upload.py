"""Uploads over HTTP: the multipart form, ranges, a connection that breaks in the middle, who may, what is refused; PATCH and DELETE."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from node.accounts import passwords
from node.http.access import Access
from node.http.app import HttpServer
from node.http.publishing import Publishing
from node.http.settings import HttpSettings
from node.owned_models import OwnedModels
from node.private.models import PrivateModels
from node.private.sharing import Sharing
from node.private.vault import Vault
from node.swarm.interface import CardView, ReadersView
from node.uploads.uploads import Uploads
from node.webhooks.book import WebhookBook
from node.webhooks.deliver import Webhooks
from protocol.errors import NotFound
from protocol.ids import ModelId, PeerId, model_text
from protocol.manifest import Summary
from protocol.records import Card, Readers
from tests.node.accounts.world import PASSWORD, FakeSwarm, open_home
from tests.node.http.conftest import Site
from tests.node.http.test_access import KeyedSite, bearer
from tests.node.uploads.fakes import FakeFinisher
from tests.support.fake_gateway import FakeGateway
from tests.support.wait import until

OTHER = PeerId("12D3KooWA4Xop1JaT3MHxwYMkCepYsv4iPVopMXwCz5iHYdBfeSB")
UPLOAD = "/api/v1/models/upload"


class Cards:
    """The cards of a swarm of two."""

    def __init__(self, me: PeerId) -> None:
        self.me, self.shown, self.told = me, list[CardView](), dict[ModelId, Readers]()

    def add(self, publisher: PeerId, name: str, model: bytes) -> None:
        card = Card(sequence=1, expires=1, label="node", name=name, version="1", model=model, size=1, parameters=1, created=1,
                    summary=Summary(model_type="llama"), description="as it was")  # fmt: skip
        self.shown.append(CardView(publisher, card))

    def cards(self) -> list[CardView]:
        return [view for view in self.shown if not view.card.withdrawn]

    def cards_of(self, publisher: PeerId) -> list[CardView]:
        return [view for view in self.cards() if view.publisher == publisher]

    def cards_naming(self, model: ModelId) -> list[CardView]:
        return [view for view in self.cards() if view.card.model == model]

    def resolve(self, name: str) -> ModelId:
        for view in self.cards():
            if name in (view.card.name, model_text(ModelId(view.card.model))):
                return ModelId(view.card.model)
        raise NotFound("no such model")

    def readers(self) -> list[ReadersView]:
        return [ReadersView(self.me, record) for record in self.told.values() if record.wraps]

    async def put_readers(self, model: ModelId, wraps: list[bytes], sealed: bytes) -> None:
        self.told[model] = Readers(sequence=time.time_ns(), expires=1, model=model, wraps=wraps, sealed=sealed)

    async def put_card(self, card: Card) -> None:
        self.shown = [CardView(self.me, card) if (view.publisher, view.card.name) == (self.me, card.name) else view for view in self.shown]


@dataclass
class FakeLocator:
    """Every private model was published here."""

    me: PeerId

    async def locate(self, model: ModelId) -> Any:
        return SimpleNamespace(publisher=self.me)


class FakeReporter:
    async def storage(self, model: ModelId) -> dict[str, Any]:
        return {"holders": 3}


class Taking(KeyedSite):
    sharing: Sharing
    cards: Cards
    finisher: FakeFinisher
    uploads: Uploads
    dropped: list[ModelId]
    key: str
    folder: Path

    async def ask(self, method: str, path: str, status: int, key: str | None = None, **more: Any) -> dict[str, Any]:
        headers = bearer(self.key if key is None else key) | more.pop("headers", {})
        reply, raw = await self.call(method, path, headers=headers, **more)
        assert reply.status == status, raw
        answer = json.loads(raw)
        return dict(answer["data"] if status < 300 else answer["error"])

    async def reader(self, name: str) -> str:
        """A key of the account's that may look and ask."""
        login = await self.ask("POST", "/api/v1/auth/login", 200, "", json={"username": name, "password": PASSWORD})
        made = await self.ask("POST", "/api/v1/auth/keys", 201, login["access_token"], json={"scopes": ["models:read", "inference"]})
        return str(made["api_key"])

    async def writer(self, name: str) -> str:
        """A new account's key that may publish."""
        account = await self.register(name)
        made = await self.ask("POST", "/api/v1/auth/keys", 201, account["api_key"], json={"name": "w", "scopes": ["models:write"]})
        return str(made["api_key"])


@pytest.fixture
async def taking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Taking]:
    monkeypatch.setattr(passwords, "_MEMORY_KIB", 8)
    monkeypatch.setattr(passwords, "_ITERATIONS", 1)
    home, executor, dropped = await open_home(tmp_path / "home", FakeSwarm()), ThreadPoolExecutor(2), list[ModelId]()
    cards = Cards(home.peer)

    async def take_back(model: ModelId) -> None:
        dropped.append(model)

    owned, finisher = OwnedModels(home.peer, home.accounts.database, cards, take_back), FakeFinisher()  # type: ignore[arg-type]
    uploads = Uploads(tmp_path, 1 << 20, finisher, executor)
    await uploads.open()
    webhooks = Webhooks(WebhookBook(home.accounts.database))
    vault = Vault(home.peer, bytes([1]) * 32, cards, executor)  # type: ignore[arg-type]
    sharing = Sharing(home.peer, home.accounts, vault, cards, take_back)  # type: ignore[arg-type]
    private = PrivateModels(vault, sharing, home.accounts, FakeLocator(home.peer), FakeReporter())  # type: ignore[arg-type]
    access = Access(home.accounts, home.journal, lambda who: {"peer_id": who, "http": ["https://home.example"]})
    settings = HttpSettings(port=0, open=False, local=False, body_timeout=2.0)
    server = HttpServer(FakeGateway(), settings, access, Publishing(uploads, owned, webhooks, sharing, private))
    await server.start()
    site = Taking(server._gateway, server, aiohttp.ClientSession())  # type: ignore[arg-type]
    site.home, site.cards, site.finisher, site.uploads, site.dropped, site.folder = home, cards, finisher, uploads, dropped, tmp_path
    site.sharing = sharing
    site.key = await site.writer("ann")
    yield site
    await site.session.close()
    await server.stop()
    await uploads.close()
    await home.accounts.close()
    home.journal.close()
    executor.shutdown()


def form(metadata: Any, *files: tuple[str, bytes]) -> aiohttp.FormData:
    body = aiohttp.FormData()
    body.add_field("metadata", json.dumps(metadata), content_type="application/json")
    for name, data in files:
        body.add_field("file", data, filename=name, content_type="application/octet-stream")
    return body


async def over(site: Taking, upload: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while found.get("stage") not in ("finished", "failed"):
        found = await site.ask("GET", f"{UPLOAD}/{upload}/status", 200)
        await asyncio.sleep(0.01)
    return found


async def test_a_form_with_everything_in_it(taking: Taking) -> None:
    weights = bytes(300_000)
    body = form({"name": "little", "version": "2", "license": "mit"}, ("config.json", b"{}"), ("model.safetensors", weights))
    told = await taking.ask("POST", UPLOAD, 202, data=body)
    done = await over(taking, told["upload_id"])
    assert (done["stage"], done["percentage"], done["name"], done["model_id"]) == ("finished", 100.0, "ann/little@2", "mfm1made")
    assert done["validation"] == [{"name": "load", "passed": True, "detail": "as told", "seconds": 0.0}]
    assert taking.finisher.seen == {"config.json": b"{}", "model.safetensors": weights}
    assert [one["upload_id"] for one in (await taking.ask("GET", UPLOAD, 200))["uploads"]] == [told["upload_id"]]
    entries = await taking.home.journal.read(5)
    assert (entries[0]["event"], entries[0]["name"]) == ("upload_begun", "little@2")


async def test_declared_files_in_ranges_over_a_broken_connection(taking: Taking) -> None:
    weights = bytes(range(256)) * 4_000
    files = [{"name": "config.json", "size": 2}, {"name": "deep/model.safetensors", "size": len(weights)}]
    told = await taking.ask("POST", UPLOAD, 201, json={"name": "little", "files": files})
    place = f"{UPLOAD}/{told['upload_id']}/files/deep/model.safetensors"
    _, writer = await asyncio.open_connection("127.0.0.1", taking.server.port)
    head = f"PUT {place} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {taking.key}\r\nContent-Type: application/octet-stream\r\n"
    writer.write(f"{head}Content-Length: {len(weights)}\r\n\r\n".encode() + weights[:700_000])
    await writer.drain()
    upload = taking.uploads.mine((await taking.home.caller(f"Bearer {taking.key}")).who)[0]
    await until(lambda: bool(taking.uploads._busy), 5, "it receives")
    writer.transport.abort()
    await until(lambda: not taking.uploads._busy, 5, "it is broken off")
    received = upload.files["deep/model.safetensors"].received
    assert received % 256 == 0 or 0 <= received <= 700_000
    for at in range(received, len(weights), 400_000):
        piece = weights[at : at + 400_000]
        span = {"Content-Range": f"bytes {at}-{at + len(piece) - 1}/{len(weights)}", "Content-Type": "application/octet-stream"}
        await taking.ask("PUT", place, 200, data=piece, headers=span)
    state = await taking.ask("GET", f"{UPLOAD}/{told['upload_id']}/status", 200)
    assert (state["missing"], state["stage"]) == (["config.json"], "receiving")
    await taking.ask("PUT", f"{UPLOAD}/{told['upload_id']}/files/config.json", 200, data=b"{}")
    await over(taking, told["upload_id"])
    assert taking.finisher.seen == {"config.json": b"{}", "deep/model.safetensors": weights}


async def test_a_form_that_breaks_off_is_finished_by_hand(taking: Taking) -> None:
    edge = "edge"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{json.dumps({"name": "little"})}\r\n'
    part = f'--{edge}\r\nContent-Disposition: form-data; name="f"; filename="w.bin"\r\n\r\nhalf of it'
    body = (head + part).encode()
    reply, _ = await taking.call(
        "POST", UPLOAD, data=body, headers=bearer(taking.key) | {"Content-Type": f"multipart/form-data; boundary={edge}"}
    )
    assert reply.status == 400
    (state,) = (await taking.ask("GET", UPLOAD, 200))["uploads"]
    place = f"{UPLOAD}/{state['upload_id']}"
    error = await taking.ask("POST", f"{place}/complete", 409)
    assert "w.bin" in error["details"]["missing"]
    span = {"Content-Range": "bytes 0-4/5", "Content-Type": "application/octet-stream"}
    await taking.ask("PUT", f"{place}/files/w.bin", 200, data=b"whole", headers=span)
    await taking.ask("POST", f"{place}/complete", 202)
    await over(taking, state["upload_id"])
    assert taking.finisher.seen == {"w.bin": b"whole"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (form({"name": "little"}, ("../../escape", b"x")), 400),
        (form({"name": "../x"}, ("w", b"x")), 400),
        (form({"name": "little", "surprise": 1}, ("w", b"x")), 400),
        (form({"name": "little"}), 409),
        (form({"name": "little"}, ("w", bytes((1 << 20) + 1))), 507),
        (b"{}", 400),
    ],
)
async def test_bad_uploads_are_refused_and_leave_nothing_outside(taking: Taking, body: Any, status: int) -> None:
    more = {} if isinstance(body, aiohttp.FormData) else {"headers": {"Content-Type": "application/octet-stream"}}
    await taking.ask("POST", UPLOAD, status, data=body, **more)
    assert not [path for path in taking.folder.rglob("escape")]


async def test_bad_ranges(taking: Taking) -> None:
    told = await taking.ask("POST", UPLOAD, 201, json={"name": "little", "files": [{"name": "w", "size": 10}]})
    place = f"{UPLOAD}/{told['upload_id']}/files/w"
    for given in ("bytes 0-3/10", "bytes 5-1/10", "bytes 8-12/10", "bytes=0-4/10", "bytes -5/10", "lines 0-4/10", "bytes 0-4/9x"):
        await taking.ask("PUT", place, 400, data=b"12345", headers={"Content-Range": given})
    await taking.ask("PUT", place, 409, data=b"12345", headers={"Content-Range": "bytes 5-9/10"})
    await taking.ask("PUT", place, 409, data=b"12345", headers={"Content-Range": "bytes 0-4/11"})


async def test_who_may_upload(taking: Taking) -> None:
    reply, _ = await taking.call("POST", UPLOAD, data=form({"name": "little"}, ("w", b"x")))
    assert reply.status == 403, "a page could have sent it"
    reader = await taking.ask("POST", "/api/v1/auth/keys", 403, json={"scopes": ["models:write", "inference"]})
    assert reader["code"] == "forbidden"
    told = await taking.ask("POST", UPLOAD, 201, json={"name": "little"})
    other = await taking.writer("bob")
    for method, path in (("GET", "/status"), ("POST", "/complete"), ("DELETE", ""), ("PUT", "/files/w")):
        more = {"json": {}} if method == "POST" else {"data": b"x"} if method == "PUT" else {}
        await taking.ask(method, f"{UPLOAD}/{told['upload_id']}{path}", 404, other, **more)
    assert (await taking.ask("GET", UPLOAD, 200, other))["uploads"] == []
    await taking.ask("DELETE", f"{UPLOAD}/{told['upload_id']}", 200)
    await taking.ask("GET", f"{UPLOAD}/{told['upload_id']}/status", 404)


async def test_a_model_is_changed_and_taken_back_by_its_owner_alone(taking: Taking) -> None:
    mine, theirs, away = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
    who = (await taking.home.caller(f"Bearer {taking.key}")).who
    for publisher, name, model in ((taking.cards.me, "mine", mine), (taking.cards.me, "theirs", theirs), (OTHER, "away", away)):
        taking.cards.add(publisher, name, model)
    owned = taking.server._publishing.owned  # type: ignore[union-attr]
    await owned.add(who, "mine", "1", ModelId(mine))
    await taking.ask("POST", UPLOAD, 409, json={"name": "theirs"})
    changed = await taking.ask("PATCH", "/api/v1/models/mine", 200, json={"description": "better"})
    assert (changed["description"], changed["license"]) == ("better", None)
    (card,) = (view.card for view in taking.cards.cards() if view.card.name == "mine")
    assert (card.created, card.updated) == (1, pytest.approx(time.time(), abs=60))
    assert (await taking.ask("PATCH", "/api/v1/models/mine", 200, json={"description": None}))["description"] is None
    for method, more in (("PATCH", {"json": {"license": "mit"}}), ("DELETE", {})):
        await taking.ask(method, "/api/v1/models/theirs", 403, **more)
        error = await taking.ask(method, "/api/v1/models/away", 421, **more)
        assert error["details"]["home"] == {"peer_id": OTHER, "http": ["https://home.example"]}
    for body in ({}, {"name": "x"}, {"description": 1}):
        await taking.ask("PATCH", "/api/v1/models/mine", 400, json=body)
    gone = await taking.ask("DELETE", f"/api/v1/models/{model_text(ModelId(mine))}", 200)
    assert gone == {"model_id": model_text(ModelId(mine)), "names": ["node/mine@1"], "shards_dropped": True}
    assert taking.dropped == [mine]
    assert "mine" not in [view.card.name for view in taking.cards.cards()]
    events = [entry["event"] for entry in await taking.home.journal.read(3)]
    assert events == ["model_withdrawn", "model_changed", "model_changed"]


async def test_a_private_model_is_shared_over_the_api(taking: Taking) -> None:
    """What the listener says of one: nothing to others, all to its readers; roles and teams by the documented bodies."""
    who = (await taking.home.caller(f"Bearer {taking.key}")).who
    other = await taking.writer("bob")
    bob = await taking.ask("GET", "/api/v1/users/me", 403, other)
    assert bob["code"] == "forbidden", "a key for writing isn't one for the account"
    card = Card(sequence=1, expires=1, label="node", name="sauce", version="1", model=bytes(32), size=5, parameters=4, created=3,
                summary=Summary(model_type="llama"), description="secret words")  # fmt: skip
    model = ModelId(bytes([9]) * 32)
    await taking.sharing.begin(model, bytes([5]) * 32, bytes.fromhex(who), card)
    place, text = "/api/v1/models/sauce/share", model_text(model)
    told = await taking.ask("GET", place, 403)
    assert "models:read" in told["message"]
    reader = await taking.reader("ann")
    for order, places in (("asc", [5, 269_000_000]), ("desc", [269_000_000, 5])):
        listed = (await taking.ask("GET", f"/api/v1/models?sort=size&order={order}", 200, reader))["models"]
        assert [one["size_bytes"] for one in listed] == places
    assert text in [one["id"] for one in (await taking.ask("GET", "/api/v1/models", 200, reader))["models"]]
    shown = await taking.ask("GET", "/api/v1/models/sauce", 200, reader)
    assert (shown["private"], shown["description"], shown["storage"]) == (True, "secret words", {"holders": 3})
    bobs = await taking.reader("bob")
    for path in ("/api/v1/models/sauce", f"/api/v1/models/{text}", place, f"/api/v1/models/{text}/plan"):
        await taking.ask("GET", path, 404, bobs)
    assert all(not one["private"] for one in (await taking.ask("GET", "/api/v1/models", 200, bobs))["models"])
    ask = {"input": {"text": "hi"}}
    chat = {"model": text, "messages": [{"role": "user", "content": "x"}]}
    for path, body in ((f"/api/v1/models/{text}/inference", ask), ("/v1/chat/completions", chat)):
        reply, raw = await taking.call("POST", path, headers=bearer(bobs), json=body)
        assert reply.status == 404, raw
    assert taking.gateway.asked == []
    shared = await taking.ask("POST", place, 200, json={"identity": "bob", "role": "editor"})
    assert [one["role"] for one in shared["shared_with"]].count("editor") == 1
    assert (await taking.ask("GET", "/api/v1/models/sauce", 200, bobs))["private"]
    before = await taking.ask("GET", "/api/v1/models/sauce", 200, bobs)
    assert before["updated_at"] == before["created_at"]
    await taking.ask("PATCH", "/api/v1/models/sauce", 200, other, json={"description": "better"})
    after = await taking.ask("GET", "/api/v1/models/sauce", 200, bobs)
    assert (after["created_at"], after["description"]) == (before["created_at"], "better")
    assert after["updated_at"] > before["updated_at"]
    await taking.ask("POST", place, 403, other, json={"identity": "ann", "role": "reader"})
    for body in ({"identity": "bob", "role": "king"}, {"identity": ""}, {"identity": "not@known", "x": 1}):
        await taking.ask("POST", place, 400, json=body)
    await taking.ask("POST", place, 404, json={"identity": "nobody@aaaaaaaa", "role": "reader"})
    await taking.ask("DELETE", place, 200, json={"identity": "bob"})
    await taking.ask("GET", "/api/v1/models/sauce", 404, bobs)
    await taking.ask("POST", "/api/v1/teams", 201, json={"name": "cooks"})
    await taking.ask("PUT", "/api/v1/teams/cooks/members", 200, json={"identity": "bob"})
    await taking.ask("POST", place, 200, json={"identity": "team:cooks"})
    await taking.ask("GET", "/api/v1/models/sauce", 200, bobs)
    (team,) = (await taking.ask("GET", "/api/v1/teams", 200))["teams"]
    await taking.ask("DELETE", f"/api/v1/teams/cooks/members/{team['members'][0]}", 200)
    await taking.ask("GET", "/api/v1/models/sauce", 404, bobs)
    await taking.ask("DELETE", "/api/v1/teams/cooks", 403, other)
    await taking.ask("DELETE", "/api/v1/teams/cooks", 200)
    await taking.ask("DELETE", "/api/v1/models/sauce", 404, other)
    assert (await taking.ask("DELETE", "/api/v1/models/sauce", 200))["shards_dropped"]
    assert taking.dropped == [model]
    events = {entry["event"] for entry in await taking.home.journal.read(40)}
    assert {"model_shared", "model_unshared", "team_made", "team_member_added", "team_member_removed", "model_withdrawn"} <= events


async def test_an_application_without_it_says_so(site: Site) -> None:
    reply, _ = await site.call("GET", UPLOAD)
    assert reply.status == 401


async def test_an_account_takes_along_and_leaves_nothing_behind(taking: Taking) -> None:
    """Export and end: uploads, webhooks, teams, what is shared; published models alone stay."""
    bob = await taking.writer("bob")
    mine = (await taking.ask("POST", "/api/v1/auth/login", 200, "", json={"username": "ann", "password": PASSWORD}))["access_token"]
    upload = await taking.ask("POST", UPLOAD, 201, json={"name": "half", "files": [{"name": "config.json", "size": 9}]})
    card = Card(sequence=1, expires=1, label="node", name="sauce", version="1", model=bytes(32), size=5, parameters=4, created=3,
                summary=Summary(model_type="llama"))  # fmt: skip
    bobs_key = (await taking.home.caller(f"Bearer {bob}")).who
    await taking.sharing.begin(ModelId(bytes([9]) * 32), bytes([5]) * 32, bytes.fromhex(bobs_key), card)
    model = model_text(ModelId(bytes([9]) * 32))
    hook = await taking.ask("POST", "/api/v1/webhooks", 201, json={"url": "https://hooks.example/x"})
    await taking.ask("POST", "/api/v1/teams", 201, json={"name": "cooks"})
    await taking.ask("POST", "/api/v1/teams", 201, bob, json={"name": "waiters"})
    await taking.ask("PUT", "/api/v1/teams/waiters/members", 200, bob, json={"identity": "ann"})
    await taking.ask("PUT", "/api/v1/teams/cooks/members", 200, json={"identity": "bob"})
    for whom in ("ann", "team:cooks", "team:waiters"):
        await taking.ask("POST", f"/api/v1/models/{model}/share", 200, bob, json={"identity": whom, "role": "reader"})
    told = await taking.ask("GET", "/api/v1/users/me/export", 200, mine)
    assert [one["upload_id"] for one in told["uploads"]] == [upload["upload_id"]]
    assert [(one["id"], one["secret"], one["url"]) for one in told["webhooks"]] == [(hook["id"], hook["secret"], "https://hooks.example/x")]
    bobs = await taking.ask("GET", "/api/v1/users/me/export", 200, await login(taking, "bob"))
    assert told["teams"] == [{"name": "cooks", "members": [bobs["account_public_key"]]}]
    assert (told["member_of"], bobs["member_of"]) == (["waiters"], ["cooks"])
    assert told["shared"] == [{"model_id": model, "role": "reader"}]
    assert bobs["shared"] == [{"model_id": model, "role": "owner"}]
    await taking.ask("DELETE", "/api/v1/users/me", 200, mine, json={"password": PASSWORD})
    assert taking.uploads.mine(told["account_public_key"]) == []
    assert not list(taking.folder.glob(f"uploads/{upload['upload_id']}*"))
    for table, column in (("webhooks", "who"), ("teams", "owner")):
        assert await taking.home.accounts.database.rows(f"select * from {table} where {column} = ?", told["account_public_key"]) == []
    assert (await taking.ask("GET", "/api/v1/users/me/export", 200, await login(taking, "bob")))["member_of"] == []
    readers = await taking.ask("GET", f"/api/v1/models/{model}/share", 200, await taking.reader("bob"))
    assert {one["role"] for one in readers["shared_with"]} == {"owner", "reader"}
    assert told["account_public_key"] not in json.dumps(readers)
    assert "team:cooks" not in json.dumps(readers)
    eve = await taking.writer("eve")
    await taking.ask("POST", "/api/v1/teams", 201, eve, json={"name": "cooks"})
    await taking.ask("PUT", "/api/v1/teams/cooks/members", 200, eve, json={"identity": "eve"})
    await taking.ask("GET", f"/api/v1/models/{model}", 404, await taking.reader("eve"))


async def login(taking: Taking, name: str) -> str:
    return str((await taking.ask("POST", "/api/v1/auth/login", 200, "", json={"username": name, "password": PASSWORD}))["access_token"])
