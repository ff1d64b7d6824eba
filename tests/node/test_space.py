"""Giving and taking space among nodes that talk: block, drain, rebalance."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from erasure.rebalance import Pace
from node.block_list import BlockList
from node.drain import Drainer
from node.hand_over import HandOver
from node.owner_space import SpaceMethods
from node.rebalancer import STAYED, Rebalancer
from node.store.interface import ShardKey
from protocol.errors import BadInput, Conflict, Forbidden, NotFound, StorageFull
from protocol.ids import ModelId, PeerId, model_from
from tests.node.test_grants import offer
from tests.node.verb_fakes import VerbNode, VerbSwarm, full, quiet, small_model, verb_swarm
from tests.support.virtual_time import run_virtual


class Owner:
    """The owner's calls of one node."""

    def __init__(self, node: VerbNode) -> None:
        self.node, self.stopped, self.told = node, False, 0
        known: Any = node.transfer
        self.hands = HandOver(node.peer, node.swarm, known, node.book, node.keeper)
        self.drainer = Drainer(node.view, known, node.puts, self.hands, self._tell_space)
        self.rebalancer = Rebalancer(node.view, node.swarm, known, self.hands)
        node.blocks = BlockList(node.blocks._path.parent)
        node.blocks._path.parent.mkdir(exist_ok=True)
        node.puts._blocks = node.blocks
        methods = SpaceMethods(node.swarm, known, node.locator, node.blocks, self.hands, self.drainer, self.rebalancer, self._stop)
        self.table = methods.table()

    async def _tell_space(self) -> None:
        self.told += 1

    def _stop(self) -> None:
        self.stopped = True

    async def call(self, method: str, notify: Any = quiet, **params: Any) -> Any:
        return await self.table[method](params, notify)


def spread(swarm: VerbSwarm) -> Counter[tuple[bytes, int]]:
    return Counter((info.key.encoding, info.key.shard) for node in swarm.nodes for info in node.transfer.store.list_shards())


def one_each(swarm: VerbSwarm) -> bool:
    return all(
        max(Counter(info.key.encoding for info in node.transfer.store.list_shards()).values(), default=1) == 1 for node in swarm.nodes
    )


async def test_a_drained_node_leaves_nothing_behind_and_nothing_is_lost(tmp_path: Path) -> None:
    async with verb_swarm(6, tmp_path) as swarm:
        done = await swarm.nodes[0].publish(small_model(tmp_path / "m"), k=2, n=4)
        await swarm.tell()
        before, leaver = spread(swarm), swarm.nodes[1]
        held = leaver.transfer.store.list_shards()
        assert held
        owner, events = Owner(leaver), []

        async def notify(event: dict[str, Any]) -> None:
            events.append(event)

        told = await owner.call("drain", notify)
        assert (told["handed_over"], told["bytes"]) == (len(held), sum(info.bytes for info in held))
        assert told["held_elsewhere"] == 0
        assert told["stopping"] is True
        assert owner.stopped
        assert [event["done"] for event in events] == list(range(1, len(held) + 1))
        assert leaver.transfer.store.list_shards() == []
        assert (leaver.peer, model_from(done["model_id"])) not in swarm.board.holdings
        assert spread(swarm) == before
        assert one_each(swarm)
        moved = [info for node in swarm.nodes for info in node.transfer.store.list_shards() if info.key in {i.key for i in held}]
        assert {info.owner for info in moved} == {swarm.nodes[0].peer}
        wanted = await offer(swarm.nodes[0], small_model(tmp_path / "n", seed=3))
        with pytest.raises(Forbidden, match="leaving"):
            await leaver.desk.decide(wanted.put(), swarm.nodes[0].peer)
        swarm.leave(leaver)
        await swarm.tell()
        assert (await swarm.nodes[5].fetcher.fetch(done["model_id"], tmp_path / "out", quiet))["bytes"] == done["bytes"]


async def test_a_drain_that_finds_no_home_says_why_and_the_node_stays(tmp_path: Path) -> None:
    async with verb_swarm(5, tmp_path) as swarm:
        await swarm.nodes[0].publish(small_model(tmp_path / "m"), k=2, n=4)
        await swarm.tell()
        leaver, others = swarm.nodes[0], swarm.nodes[1:]
        held = leaver.transfer.store.list_shards()
        assert held
        for node in others:
            node.transfer.refuse = full()
        owner = Owner(leaver)
        with pytest.raises(StorageFull, match="found no other home") as caught:
            await owner.call("drain")
        assert "the disk is full" in caught.value.details["refusals"].values()
        assert leaver.transfer.store.list_shards() == held
        assert not owner.stopped
        assert not leaver.puts.leaving
        assert leaver.view.me.weight > 0
        assert owner.told == 2


async def test_a_lone_node_says_at_once_that_nobody_can_take_anything(tmp_path: Path) -> None:
    async with verb_swarm(1, tmp_path) as swarm:
        await swarm.nodes[0].publish(small_model(tmp_path / "m"))
        await swarm.tell()
        with pytest.raises(StorageFull, match="nobody can take"):
            await Owner(swarm.nodes[0]).call("drain")


async def test_an_empty_node_drains_at_once_and_only_one_drain_runs(tmp_path: Path) -> None:
    async with verb_swarm(1, tmp_path) as swarm:
        owner = Owner(swarm.nodes[0])
        assert (await owner.call("drain"))["handed_over"] == 0
        with pytest.raises(Conflict, match="already"):
            await owner.call("drain")


async def test_a_shard_another_node_holds_as_well_is_only_dropped(tmp_path: Path) -> None:
    async with verb_swarm(3, tmp_path) as swarm:
        await swarm.nodes[0].publish(small_model(tmp_path / "m"), k=1, n=1)
        await swarm.tell()
        holder = next(node for node in swarm.nodes if node.transfer.store.list_shards())
        other = next(node for node in swarm.nodes if node is not holder)
        for info in holder.transfer.store.list_shards():
            reader = holder.transfer.store.open_shard(info.key)
            assert reader is not None
            other.transfer.store.put_blob(await holder.transfer.get_blob(info.key.encoding) or b"")
            await other.transfer._take(info.key, info.model, info.group, info.owner, reader.read(0, reader.length))
        await swarm.tell()
        copies = len(holder.transfer.store.list_shards())
        done = await Owner(holder).call("drain")
        assert (done["handed_over"], done["held_elsewhere"]) == (0, copies)


async def test_newcomers_get_their_share_and_then_no_more(tmp_path: Path) -> None:
    async with verb_swarm(4, tmp_path) as swarm:
        done = await swarm.nodes[0].publish(small_model(tmp_path / "m", layers=6), k=2, n=4)
        before = spread(swarm)
        for node in swarm.nodes:
            swarm.change(node, storage=1 << 30, storage_free=1 << 29)
            node.view.tell_room(1, 2)
        newcomers = [await swarm.add(tmp_path) for _ in range(4)]
        for node in newcomers:
            swarm.change(node, storage=1 << 30, storage_free=1 << 30)
        await swarm.tell()
        moved = 0
        for node in swarm.nodes[:4]:
            told = await Owner(node).call("rebalance")
            assert (told["planned"], told["refusals"]) == (told["moved"], {})
            moved += told["moved"]
            await swarm.tell()
        assert spread(swarm) == before
        assert one_each(swarm)
        got = sum(len(node.transfer.store.list_shards()) for node in newcomers)
        assert got == moved
        assert 0.25 < got / before.total() < 0.75
        await swarm.tell()
        assert (await Owner(swarm.nodes[1]).call("rebalance"))["planned"] == 0
        assert (await newcomers[0].fetcher.fetch(done["model_id"], tmp_path / "out", quiet))["bytes"] == done["bytes"]


async def test_a_newcomer_without_more_room_gets_nothing_and_a_refusal_moves_nothing(tmp_path: Path) -> None:
    async with verb_swarm(3, tmp_path) as swarm:
        await swarm.nodes[0].publish(small_model(tmp_path / "m", layers=24), k=1, n=3)
        newcomer = await swarm.add(tmp_path)
        await swarm.tell()
        node = swarm.nodes[0]
        node.view.tell_room(10, 100)
        swarm.change(newcomer, storage=1 << 30, storage_free=1 << 28)
        assert (await Owner(node).call("rebalance"))["planned"] == 0
        swarm.change(newcomer, storage=1 << 30, storage_free=1 << 30)
        newcomer.transfer.refuse = full()
        held = node.transfer.store.list_shards()
        told = await Owner(node).call("rebalance")
        assert told["planned"] > 0
        assert told["moved"] == 0
        assert told["refusals"] == {newcomer.peer: "the disk is full"}
        assert node.transfer.store.list_shards() == held


@pytest.mark.parametrize("rate", [0, -1, True, "fast"])
async def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate: Any) -> None:
    async with verb_swarm(1, tmp_path) as swarm:
        with pytest.raises(BadInput, match="rate"):
            await Owner(swarm.nodes[0]).call("rebalance", rate=rate)


def test_moving_takes_as_long_as_its_rate_allows_and_waits_until_a_node_has_stayed(tmp_path: Path) -> None:
    async def main() -> None:
        async with verb_swarm(3, tmp_path) as swarm:
            await swarm.nodes[0].publish(small_model(tmp_path / "m", layers=40), k=1, n=3)
            loop, node = asyncio.get_running_loop(), swarm.nodes[0]
            owner = Owner(node)
            known: Any = node.transfer
            mover = Rebalancer(node.view, node.swarm, known, owner.hands, loop.time)
            mover._settled = {other.peer for other in swarm.nodes}
            newcomer = await swarm.add(tmp_path)
            await swarm.tell()
            await mover.round()
            assert mover.stayed() == set()
            await asyncio.sleep(STAYED)
            assert mover.stayed() == {newcomer.peer}
            began = loop.time()
            moved = await mover.rebalance(quiet, {newcomer.peer}, Pace(rate=1.0))
            assert moved.moved > 1
            largest = max(info.bytes for info in newcomer.transfer.store.list_shards())
            assert loop.time() - began >= moved.bytes - largest - 60
            await mover.round()
            assert mover.stayed() == set()

    run_virtual(main())


async def test_a_blocked_model_leaves_and_doesnt_come_back_until_it_may(tmp_path: Path) -> None:
    async with verb_swarm(2, tmp_path) as swarm:
        mine, other = swarm.nodes
        done = await mine.publish(small_model(tmp_path / "m"), k=1, n=2)
        await swarm.tell()
        owner, held = Owner(other), other.transfer.store.list_shards()
        told = await owner.call("block", what="m")
        assert told["models"] == [done["model_id"]]
        assert told["publishers"] == []
        assert told["freed"] > 0
        assert other.transfer.store.list_shards() == []
        assert other.transfer.store.space().used == 0
        envelope = mine.transfer.store.get_blob(held[0].key.encoding)
        model = ModelId(model_from(done["model_id"]))
        with pytest.raises(Forbidden, match="nothing of this model"):
            await mine.book.to_put(other.peer, held[0].key.encoding, envelope or b"", held[0].key.shard, model)
        again = BlockList(other.blocks._path.parent)
        again.load()
        assert again.models == {model}
        assert await owner.call("block", what=done["model_id"], block=False) == {"models": [], "publishers": [], "freed": 0}
        await mine.book.to_put(other.peer, held[0].key.encoding, envelope or b"", held[0].key.shard, model)


async def test_a_blocked_publishers_shards_leave_whoever_brought_them(tmp_path: Path) -> None:
    async with verb_swarm(3, tmp_path) as swarm:
        mine, other, third = swarm.nodes
        await mine.publish(small_model(tmp_path / "m"), k=1, n=3)
        await third.publish(small_model(tmp_path / "n", seed=4), k=1, n=3)
        await swarm.tell()
        owner = Owner(other)
        told = await owner.call("block", what=mine.peer)
        assert told["publishers"] == [mine.peer]
        assert {info.owner for info in other.transfer.store.list_shards()} == {third.peer}
        wanted = await offer(mine, small_model(tmp_path / "o", seed=5))
        with pytest.raises(Forbidden, match="this publisher"):
            await other.desk.decide(wanted.put(), mine.peer)
        with pytest.raises(Forbidden, match="this publisher"):
            await other.desk.decide(wanted.put(), third.peer)
        assert (await owner.call("block"))["publishers"] == [mine.peer]


@pytest.mark.parametrize(("what", "error"), [("nobody's", NotFound), ("", BadInput), (5, BadInput)])
async def test_what_means_nothing_cant_be_blocked(tmp_path: Path, what: Any, error: type[Exception]) -> None:
    async with verb_swarm(1, tmp_path) as swarm:
        with pytest.raises(error) as caught:
            await Owner(swarm.nodes[0]).call("block", what=what)
        assert error is BadInput or "neither a model nor a publisher" in str(caught.value)


def test_a_block_list_that_cant_be_read_isnt_forgotten_silently(tmp_path: Path) -> None:
    blocks = BlockList(tmp_path)
    blocks.load()
    blocks.set(PeerId("p"), True)
    blocks.set(ModelId(bytes(32)), True)
    blocks.set(PeerId("q"), False)
    again = BlockList(tmp_path)
    again.load()
    assert (again.models, again.publishers) == ({ModelId(bytes(32))}, {PeerId("p")})
    (tmp_path / "blocked.msgpack").write_bytes(b"nonsense")
    with pytest.raises(Conflict, match="can't be read"):
        BlockList(tmp_path).load()


async def test_a_publisher_renews_what_was_handed_over(tmp_path: Path) -> None:
    async with verb_swarm(4, tmp_path) as swarm:
        mine, holder = swarm.nodes[:2]
        await mine.publish(small_model(tmp_path / "m"), k=1, n=3)
        await swarm.tell()
        held = holder.transfer.store.list_shards()
        await Owner(holder).call("drain")
        await swarm.tell()
        moved = {ShardKey(info.key.encoding, info.key.shard) for info in held}
        taker = next(node for node in swarm.nodes if {info.key for info in node.transfer.store.list_shards()} & moved)
        if taker is not mine:
            key = next(iter({info.key for info in taker.transfer.store.list_shards()} & moved))
            assert await taker.transfer.renew([key], mine.peer) == 1
