"""The owner's calls: what they take, what they refuse, and whom a name means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.gateway import Finished, Piece, Planned
from node.keep_holdings import GATHER, GATHER_AT_MOST, HoldingKeeper
from node.owner_methods import OwnerMethods
from node.store.interface import ShardInfo, ShardKey
from node.swarm.interface import CardView
from node.whom import shown
from protocol.errors import BadInput, MfError, NotFound, Unavailable
from protocol.ids import EncodingId, ModelId, PeerId
from protocol.manifest import Summary
from protocol.records import Card
from protocol.signing import peer_of
from tests.node.verb_fakes import Board, FakeSwarm, VerbNode, VerbSwarm, quiet, small_model, verb_swarm
from tests.support.virtual_time import run_virtual
from tests.support.wait import until


def card(label: str, signer: PeerId) -> CardView:
    fields: dict[str, Any] = dict.fromkeys(("sequence", "expires", "size", "parameters", "created"), 1)
    return CardView(signer, Card(**fields, label=label, name="m", version="1", model=bytes(32), summary=Summary(model_type="x")))


def someone() -> PeerId:
    return peer_of(Ed25519PrivateKey.generate())


class Replies:
    """A generator that says one thing and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def generate(self, request: Any) -> AsyncIterator[Any]:
        self.asked.append(request)
        yield Planned("m", "here", [], 1)
        yield Piece("hello", 1)
        yield Finished("stop", 1, 1, [], {"total": 0.1})


class Setting:
    def __init__(self, node: VerbNode) -> None:
        self.replies = Replies()
        self.stopped = False
        replies: Any = self.replies
        transfer: Any = node.transfer
        nobody: Any = None
        self.table = OwnerMethods(
            node.swarm, transfer, node.locator, node.publisher, node.fetcher, replies, nobody, node.reporter, node.keeper, "raw", self.stop
        ).table()

    def stop(self) -> None:
        self.stopped = True

    async def call(self, method: str, notify: Any = quiet, **params: Any) -> Any:
        return await self.table[method](params, notify)


@pytest.fixture
async def owned(tmp_path: Path) -> AsyncIterator[tuple[VerbSwarm, Setting]]:
    async with verb_swarm(3, tmp_path) as swarm:
        yield swarm, Setting(swarm.nodes[0])


async def test_publish_list_fetch_and_forget(owned: tuple[VerbSwarm, Setting], tmp_path: Path) -> None:
    swarm, owner = owned
    done = await owner.call("publish", path=str(small_model(tmp_path / "m")), name="little", k=1, n=3)
    await swarm.tell()
    (line,) = (await owner.call("models"))["models"]
    assert (line["name"], line["survives_losses"], line["holders"]) == ("alice/little@1", 2, 3)
    assert (await owner.call("fetch", model="little", dir=str(tmp_path / "out")))["bytes"] == done["bytes"]
    assert (await owner.call("holdings"))["holdings"][0]["shards"] == done["groups"]
    assert len((await owner.call("holders", model="little"))["groups"]) == done["groups"]
    freed = await owner.call("forget", model="little")
    assert freed["model_id"] == done["model_id"]
    assert freed["freed"] > 0
    assert len(swarm.nodes[0].swarm.holdings(ModelId(swarm.board.cards[0].card.model))) == 2
    with pytest.raises(NotFound, match="lies here"):
        await owner.call("forget", model="little")


async def test_a_reply_comes_as_events_and_ends_with_figures(owned: tuple[VerbSwarm, Setting]) -> None:
    _swarm, owner = owned
    events: list[dict[str, Any]] = []

    async def notify(event: dict[str, Any]) -> None:
        events.append(event)

    last = await owner.call("generate", notify, model="m", text="hi", temperature=0.5, max_tokens=3, stop=["x"])
    assert [event["event"] for event in events] == ["planned", "text"]
    assert (last["event"], last["reason"], last["completion_tokens"]) == ("finished", "stop", 1)
    (request,) = owner.replies.asked
    assert (request.sampling.temperature, request.sampling.top_p, request.max_tokens, request.stop) == (0.5, 1.0, 3, ("x",))


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("publish", {}),
        ("publish", {"path": 7}),
        ("publish", {"path": "p", "k": "2", "n": 3}),
        ("publish", {"path": "p", "k": True, "n": 3}),
        ("publish", {"path": "p", "name": 5}),
        ("fetch", {"model": "m"}),
        ("generate", {"model": "m", "text": 5}),
        ("generate", {"model": "m", "temperature": "hot"}),
        ("generate", {"model": "m", "max_tokens": 1.5}),
        ("generate", {"model": "m", "stop": "word"}),
        ("generate", {"model": "m", "messages": [1]}),
        ("trust", {}),
        ("join", {"ticket": ""}),
        ("models", {"query": 3}),
    ],
)
async def test_wrong_parameters_are_said(owned: tuple[VerbSwarm, Setting], method: str, params: dict[str, Any]) -> None:
    _swarm, owner = owned
    with pytest.raises(BadInput):
        await owner.call(method, **params)


async def test_trust_ticket_join_and_stop(owned: tuple[VerbSwarm, Setting]) -> None:
    swarm, owner = owned
    swarm.board.cards.append(card("bob", swarm.nodes[1].peer))
    assert await owner.call("trust", who=shown(swarm.board.cards[-1])) == {"trusted": swarm.nodes[1].peer}
    assert swarm.nodes[1].peer in swarm.nodes[0].swarm.trusts
    assert await owner.call("ticket") == {"ticket": "mft1x"}
    assert await owner.call("join", ticket="mft1x") == {"peers": 1}
    assert await owner.call("stop") == {"stopping": True}
    assert owner.stopped


# Holdings, told as they change.


class Shelf:
    """A store that lists `shards`, or fails while `fault` is set."""

    def __init__(self) -> None:
        self.shards: list[ShardInfo] = []
        self.fault: MfError | None = None
        self.listed = 0

    async def list_shards(self, model: ModelId | None = None) -> list[ShardInfo]:
        self.listed += 1
        if self.fault:
            raise self.fault
        return [info for info in self.shards if model in (None, info.model)]

    async def models(self) -> dict[ModelId, list[bytes]]:
        return {}

    def add(self, group: int, shard: int) -> None:
        key = ShardKey(EncodingId(bytes([group]) * 32), shard)
        self.shards.append(ShardInfo(key, MODEL, group, 1, 0.0, "owner"))


MODEL = ModelId(bytes(32))


def keeping(shelf: Shelf, test: Any) -> None:
    async def main() -> None:
        board = Board()
        swarm, nobody = FakeSwarm(PeerId("me"), board), None
        transfer: Any = shelf
        locator: Any = nobody
        keeper = HoldingKeeper(swarm, transfer, locator)
        task = asyncio.create_task(keeper.run())
        await test(keeper, board)
        task.cancel()

    run_virtual(main())


def test_a_burst_is_gathered_into_one_holding() -> None:
    shelf = Shelf()

    async def test(keeper: HoldingKeeper, board: Board) -> None:
        for group in range(20):
            shelf.add(group, 1)
            keeper.changed(MODEL)
        await asyncio.sleep(2 * GATHER)
        assert len(board.told) == 1
        shelf.add(0, 2)
        keeper.changed(MODEL)
        await until(lambda: len(board.told) == 2, 2.0, "told again")
        held = board.holdings[PeerId("me"), MODEL].held
        assert [entry.group for entry in held] == list(range(20))
        assert held[0].shards == [1, 2]
        shelf.shards.clear()
        keeper.changed(MODEL)
        await until(lambda: not board.holdings, 2.0, "withdrawn")

    keeping(shelf, test)


def test_a_long_burst_is_told_now_and_then() -> None:
    shelf = Shelf()

    async def test(keeper: HoldingKeeper, board: Board) -> None:
        for group in range(60):
            shelf.add(group, 1)
            keeper.changed(MODEL)
            await asyncio.sleep(GATHER / 2)
        assert 2 <= len(board.told) <= 1 + 30 * GATHER / GATHER_AT_MOST
        await until(lambda: len(board.holdings[PeerId("me"), MODEL].held) == 60, 3 * GATHER, "the last too")

    keeping(shelf, test)


def test_what_lies_here_is_told_at_start() -> None:
    shelf = Shelf()
    shelf.add(3, 0)

    async def test(keeper: HoldingKeeper, board: Board) -> None:
        await until(lambda: bool(board.holdings), 2.0, "told")
        assert len(board.told) == 1

    keeping(shelf, test)


def test_a_holding_that_couldnt_be_told_is_told_later() -> None:
    shelf = Shelf()

    async def test(keeper: HoldingKeeper, board: Board) -> None:
        await until(lambda: shelf.listed == 1, 2.0, "listed at start")
        shelf.add(0, 0)
        shelf.fault = Unavailable("the transfer process ended")
        keeper.changed(MODEL)
        await until(lambda: shelf.listed >= 2, 2.0, "tried")
        assert not board.told
        shelf.fault = None
        await until(lambda: bool(board.holdings), 5.0, "told")

    keeping(shelf, test)
