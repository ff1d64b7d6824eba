"""Repair over the in-memory swarm: real codes, real grants, the shipping policy, a clock that is turned by hand."""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from erasure.audit import HeldShard, Verdict
from erasure.presence import HOUR
from erasure.standing import GroupView, comes_before
from node.repair import Repairs, settings_for
from node.repair_memory import RepairMemory
from node.repair_sight import RepairSight
from node.repair_work import RepairWork
from node.swarm.interface import HoldingView, PeerView
from protocol.ids import EncodingId, ModelId, PeerId
from tests.node.verb_fakes import FakeSwarm, InlineExecutor, VerbNode, VerbSwarm, full, quiet, small_model, verb_swarm

BASE = time.time()


class Clock:
    now = 1000.0

    def unix(self) -> float:
        return BASE + self.now


class Healing:
    """A swarm whose nodes all repair; `minute` lets one pass."""

    def __init__(self, swarm: VerbSwarm, folder: Path, gone_after: float = HOUR) -> None:
        self.swarm = swarm
        self.clock = Clock()
        self.folder = folder
        self.gone_after = gone_after
        self.repairs = {node.peer: self.repairs_of(node) for node in swarm.nodes}

    def repairs_of(self, node: VerbNode) -> Repairs:
        known: Any = node.transfer
        work = RepairWork(node.swarm, known, node.book, node.placer, node.assembled.lying)
        memory = RepairMemory(self.folder / f"{node.peer}.msgpack")
        clock = self.clock
        sight = RepairSight(node.peer, node.swarm, known, node.locator, self.gone_after, lambda: clock.now, clock.unix)
        rng = random.Random(str(node.peer))
        return Repairs(sight, known, node.keeper, work, memory, InlineExecutor(), settings_for(self.gone_after, 4e6), rng)

    def living(self) -> list[VerbNode]:
        return [node for node in self.swarm.nodes if node.peer not in self.swarm.board.away]

    async def minute(self, count: int = 1) -> None:
        for _ in range(count):
            self.clock.now += 60
            for node in self.living():
                await self.repairs[node.peer].round()
                await node.tell()
            for node in self.living():
                await self.repairs[node.peer].idle()
                await node.tell()

    def lying(self) -> dict[bytes, dict[int, list[PeerId]]]:
        """encoding -> shard -> living holders."""
        found: dict[bytes, dict[int, list[PeerId]]] = {}
        for node in self.living():
            for info in node.transfer.store.list_shards():
                found.setdefault(info.key.encoding, {}).setdefault(info.key.shard, []).append(node.peer)
        return found

    def rebuilt(self) -> list[tuple[bytes, list[int]]]:
        return [done for node in self.swarm.nodes for done in node.transfer.rebuilt]

    def kill_holders(self, count: int) -> list[VerbNode]:
        """Nodes that hold shards of the first encoding, the publisher excepted."""
        first = sorted(self.lying().items())[0][1]
        peers = [peers[0] for _, peers in sorted(first.items()) if peers[0] != self.swarm.nodes[0].peer][:count]
        gone = [node for node in self.swarm.nodes if node.peer in peers]
        for node in gone:
            self.swarm.leave(node)
        return gone


@pytest.fixture
async def ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Healing]:
    plain = FakeSwarm.view

    def view(self: FakeSwarm, peer: PeerId) -> PeerView:
        return dataclasses.replace(plain(self, peer), last_seen=None)

    monkeypatch.setattr(FakeSwarm, "view", view)
    async with verb_swarm(10, tmp_path) as swarm:
        await swarm.nodes[0].publish(small_model(tmp_path / "little"), k=2, n=6)
        await swarm.tell()
        healing = Healing(swarm, tmp_path)
        await healing.minute()
        yield healing


async def test_lost_shards_are_made_anew_once_and_lie_at_other_nodes(ten: Healing, tmp_path: Path) -> None:
    before = ten.lying()
    assert all(len(shards) == 6 for shards in before.values())
    ten.kill_holders(3)
    below = {encoding for encoding, shards in ten.lying().items() if len(shards) < 4}
    assert below
    await ten.minute(14)
    assert ten.rebuilt() == []
    await ten.minute(10)
    after = ten.lying()
    assert {encoding for encoding, _ in ten.rebuilt()} == below
    assert len(ten.rebuilt()) == len(below)
    for encoding in below:
        assert sorted(after[encoding]) == [0, 1, 2, 3, 4, 5]
        holders = [peer for peers in after[encoding].values() for peer in peers]
        assert len(holders) == len(set(holders)) == 6
    counts = [repairs.counts for repairs in ten.repairs.values()]
    assert sum(count.repairs for count in counts) == len(below)
    assert sum(count.shards for count in counts) == sum(len(made) for _, made in ten.rebuilt())
    assert sum(count.failed for count in counts) == 0

    ten.kill_holders(2)
    asker = await ten.swarm.add(tmp_path)
    model = next(iter(ten.swarm.nodes[0].swarm.cards())).card.full_name()
    assert (await asker.fetcher.fetch(model, tmp_path / "back", quiet))["files"] == 3


async def with_everything(ten: Healing, folder: Path) -> VerbNode:
    """A node that has run the model: all its groups lie there whole, beside a shard of some. Not the publisher; by lot it comes last
    of those that hold the first group."""
    encoding, shards = min(ten.lying().items())
    view = GroupView(encoding, 2, 6, 6, 1, shards)
    holders = [node for node in ten.swarm.nodes[1:] if [node.peer] in shards.values()]
    node = min(holders, key=lambda node: sum(comes_before(view, node.peer, other.peer, ten.clock.now) for other in holders))
    (folder / node.peer).mkdir(exist_ok=True)
    await node.assembled.open()
    located = await node.locator.locate(node.swarm.resolve("little"))
    for group in range(len(located.manifest.groups)):
        (await node.assembled.group(located, group)).close()
    await node.assembled.settled()
    await node.tell()
    return node


def kill_but(ten: Healing, spared: VerbNode) -> set[bytes]:
    """Three other holders of a group that `spared` has a shard of; the encodings below r now."""
    mine = min(info.key.encoding for info in spared.transfer.store.list_shards())
    publisher = ten.swarm.nodes[0].peer
    gone = [peers[0] for _, peers in sorted(ten.lying()[mine].items()) if peers[0] not in (publisher, spared.peer)][:3]
    for node in [node for node in ten.swarm.nodes if node.peer in gone]:
        ten.swarm.leave(node)
    return {encoding for encoding, shards in ten.lying().items() if len(shards) < 4}


async def test_who_holds_a_group_whole_makes_its_shards_first_and_reads_nothing(ten: Healing, tmp_path: Path) -> None:
    node = await with_everything(ten, tmp_path)
    mine = {info.key.encoding for info in node.transfer.store.list_shards()}
    told = next(view for (peer, _), view in ten.swarm.board.holdings.items() if peer == node.peer)
    assert sorted(told.full) == sorted(entry.group for entry in told.held)
    below = kill_but(ten, node)
    assert below & mine
    fetches = node.transfer.fetches
    await ten.minute(26)
    assert {encoding for encoding, _ in ten.rebuilt()} == below - mine
    counts = ten.repairs[node.peer].counts
    assert (counts.repairs, counts.failed, counts.read, node.transfer.fetches) == (len(below & mine), 0, 0, fetches)
    assert counts.written > 0
    for encoding in below:
        assert sorted(ten.lying()[encoding]) == [0, 1, 2, 3, 4, 5]


async def test_a_whole_group_that_codes_otherwise_here_is_no_use_and_k_shards_are_read(ten: Healing, tmp_path: Path) -> None:
    node = await with_everything(ten, tmp_path)
    node.transfer.lie = True
    below = kill_but(ten, node)
    await ten.minute(26)
    assert {encoding for encoding, _ in ten.rebuilt()} == below
    assert node.transfer.staged == {}
    assert sum(repairs.counts.failed for repairs in ten.repairs.values()) == 0
    for encoding in below:
        assert sorted(ten.lying()[encoding]) == [0, 1, 2, 3, 4, 5]


async def test_a_full_holding_without_a_shard_puts_nobody_first(ten: Healing) -> None:
    model = ModelId(ten.swarm.nodes[0].swarm.cards()[0].card.model)
    boaster = ten.swarm.nodes[9]
    view = HoldingView(boaster.peer, model, [], list(range(8)), [], ())
    for node in ten.swarm.nodes[:9]:
        ten.swarm.board.holdings[boaster.peer, model] = view
        watched = await ten.repairs[node.peer]._sight.look(ten.clock.now)
        assert all(not entry.view.full for entry in watched.values())


async def test_who_comes_back_in_time_costs_nothing(ten: Healing) -> None:
    gone = {node.peer for node in ten.swarm.nodes[1:5]}
    ten.swarm.board.away |= gone
    await ten.minute(12)
    ten.swarm.board.away -= gone
    await ten.minute(60)
    assert ten.rebuilt() == []


async def test_all_say_what_a_group_survives(ten: Healing) -> None:
    state = ten.repairs[ten.living()[0].peer]
    assert {group.survives for group in state.groups} == {4}
    ten.kill_holders(3)
    await ten.minute()
    assert min(group.survives for node in ten.living() for group in ten.repairs[node.peer].groups) == 1
    assert min(group.counted for node in ten.living() for group in ten.repairs[node.peer].groups) == 6


async def test_one_claims_and_tells_it_in_its_holding(ten: Healing) -> None:
    ten.kill_holders(3)
    await ten.minute(17)
    claims = [
        (view.peer, repair.encoding)
        for view in ten.swarm.board.holdings.values()
        for repair in view.repairs
        if view.peer not in ten.swarm.board.away and repair.expires > ten.clock.unix()
    ]
    assert claims
    assert len({encoding for _, encoding in claims}) == len(claims)


async def test_whoever_refuses_is_replaced(ten: Healing) -> None:
    ten.kill_holders(3)
    holders = {peer for peers in sorted(ten.lying().items())[0][1].values() for peer in peers}
    free = [node for node in ten.living() if node.peer not in holders]
    free[0].transfer.refuse = full()
    await ten.minute(30)
    shards = sorted(ten.lying().items())[0][1]
    assert len(shards) == 3 + len(free) - 1 >= 4


async def test_without_a_place_nothing_is_read_and_no_one_hammers(ten: Healing) -> None:
    first, shards = sorted(ten.lying().items())[0]
    holders = {peer for peers in shards.values() for peer in peers}
    for node in [node for node in ten.living() if node.peer not in holders]:
        ten.swarm.leave(node)
    ten.kill_holders(3)
    await ten.minute(16)
    began = sum(repairs.counts.failed for repairs in ten.repairs.values())
    await ten.minute(60)
    assert first not in [encoding for encoding, _ in ten.rebuilt()]
    tried = sum(repairs.counts.failed for repairs in ten.repairs.values()) - began
    assert 1 <= tried <= 6 * len(ten.living()) * len(ten.lying())


async def test_a_group_that_cannot_be_read_is_told(ten: Healing, caplog: pytest.LogCaptureFixture) -> None:
    ten.kill_holders(5)
    with caplog.at_level(logging.WARNING):
        await ten.minute(17)
    assert "is in danger" in caplog.text
    assert sum(repairs.counts.alarms for repairs in ten.repairs.values()) >= 1
    assert ten.rebuilt() == [] or all(len(ten.lying()[encoding]) >= 2 for encoding, _ in ten.rebuilt())


async def test_a_restart_doesnt_take_those_who_are_away_for_lost(ten: Healing) -> None:
    gone = ten.kill_holders(3)
    await ten.minute(5)
    for node in gone:
        for key in [key for key in ten.swarm.board.holdings if key[0] == node.peer]:
            del ten.swarm.board.holdings[key]  # as after three hours
    for node in ten.living():
        await ten.repairs[node.peer].save()
        ten.repairs[node.peer] = ten.repairs_of(node)
        await ten.repairs[node.peer].remember()
    await ten.minute(8)
    assert ten.rebuilt() == []
    await ten.minute(15)
    assert ten.rebuilt()


async def test_a_shard_that_failed_its_audit_is_made_anew(ten: Healing) -> None:
    first, shards = sorted(ten.lying().items())[0]
    liars = {shard: peers[0] for shard, peers in list(shards.items())[:3]}
    for node in ten.living():
        for shard, peer in liars.items():
            ten_ago = ten.clock.now - 10
            node.swarm.audits.note(HeldShard(peer, EncodingId(first), shard), Verdict.MISSING, ten_ago, random.Random(0))
    await ten.minute(8)
    assert [encoding for encoding, _ in ten.rebuilt()] == [first]
    assert sorted(ten.rebuilt()[0][1]) == sorted(liars)


def test_a_memory_that_cannot_be_read_is_no_reason_not_to_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = RepairMemory(tmp_path / "repair.msgpack")
    assert memory.load() == []
    (tmp_path / "repair.msgpack").write_bytes(b"\xff nonsense")
    assert memory.load() == []
    assert "without a memory" in caplog.text
    memory.save([])
    assert memory.load() == []


def test_rounds_follow_the_long_clock() -> None:
    usual, quick = settings_for(12 * HOUR, 4e6), settings_for(30.0, 4e6)
    assert (usual.round, usual.settle, usual.clocks.blink) == (60.0, 30.0, 60.0)
    assert (quick.round, quick.settle, quick.clocks.blink) == (5.0, 2.5, 30.0)


async def test_a_group_grows_beyond_n_where_its_nodes_are_up_less_than_it_was_made_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FakeSwarm.view
    monkeypatch.setattr(FakeSwarm, "view", lambda self, peer: dataclasses.replace(plain(self, peer), last_seen=None))
    async with verb_swarm(10, tmp_path) as swarm:
        done = await swarm.nodes[0].publish(small_model(tmp_path / "little"), k=2, n=3, n_max=6)
        fixed = await swarm.nodes[1].publish(small_model(tmp_path / "other", seed=5), k=2, n=3)
        await swarm.tell()
        healing = Healing(swarm, tmp_path)
        before = healing.lying()
        assert {len(shards) for shards in before.values()} == {3}
        await healing.minute(30)
        numbers = {encoding: sorted(shards) for encoding, shards in healing.lying().items()}
        grown = {encoding for encoding, shards in numbers.items() if shards == [0, 1, 2, 3, 4, 5]}
        assert (len(grown), len(numbers) - len(grown)) == (done["groups"], fixed["groups"])
        assert all(numbers[encoding] == [0, 1, 2] for encoding in numbers.keys() - grown)
        for shards in healing.lying().values():
            assert max(Counter(peer for peers in shards.values() for peer in peers).values()) == 1
        holders = [healing.lying()[encoding] for encoding in grown]
        assert len(healing.rebuilt()) == len(holders), "one read made all three"


async def test_homes_are_chosen_by_the_rules_of_a_publish(ten: Healing, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are new to each other, so none may get another shard of a group; once they trust each other they may."""
    seen = FakeSwarm.view
    monkeypatch.setattr(FakeSwarm, "view", lambda self, peer: dataclasses.replace(seen(self, peer), new=True))
    for node in ten.swarm.nodes:
        node.swarm.trust_all = False
    ten.kill_holders(3)
    below = {encoding for encoding, shards in ten.lying().items() if len(shards) < 4}
    await ten.minute(26)
    assert ten.rebuilt() == []
    assert sum(repairs.counts.failed for repairs in ten.repairs.values()) > 0
    for node in ten.swarm.nodes:
        node.swarm.trust_all = True
    await ten.minute(60)
    assert below <= {encoding for encoding, shards in ten.lying().items() if len(shards) == 6}
