"""What status and lists say of a model: counted from what is announced, null where this node can't know."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from erasure.audit import FIRST_WITHIN, Verdict
from erasure.durability import apart
from node.node_gateway import NodeGateway
from node.probe import Outcome, Probe
from node.tally import Tally
from node.waiting_line import WaitingLine
from protocol.errors import NotFound
from protocol.ids import ModelId, PeerId, model_from
from tests.node.verb_fakes import VerbNode, VerbSwarm, small_model, verb_swarm
from tests.support.documents import check_document


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncIterator[tuple[VerbSwarm, VerbNode, ModelId]]:
    """Six nodes hold a model with k 2, n 6; the first, its publisher, reports."""
    async with verb_swarm(6, tmp_path) as swarm:
        done = await swarm.nodes[0].publish(small_model(tmp_path / "m"), name="little")
        await swarm.tell()
        yield swarm, swarm.nodes[0], model_from(done["model_id"])


Stored = tuple[VerbSwarm, VerbNode, ModelId]


async def audited(node: VerbNode) -> None:
    """As if the time had come at which everything announced by now is audited."""
    now = time.monotonic()
    node.auditor._refreshed.clear()
    for at in (now, now + FIRST_WITHIN):
        node.auditor._clock = lambda at=at: at  # type: ignore[misc]
        await node.auditor.round()
    node.swarm.clock = lambda: now + FIRST_WITHIN


async def test_status_is_as_documented(stored: Stored) -> None:
    swarm, node, _model = stored
    swarm.leave(swarm.nodes[5])
    status = await node.reporter.status()
    check_document("status", status)
    assert sorted(peer["alive"] for peer in status["peers"]) == [False, True, True, True, True]
    (line,) = status["models"]
    assert (line["name"], line["survives_losses"], line["holders"]) == ("alice/little@1", 3, 5)
    assert (len(line["held_by"]), set(line["coverage"].values())) == (5, {3}), "each group of layers, and who holds them"
    (holding,) = status["holdings"]
    assert holding["groups"] == holding["shards"]
    assert (await node.reporter.holdings())[0]["owners"] == [node.peer]


async def test_status_names_what_does_not_count(stored: Stored) -> None:
    swarm, node, _model = stored
    bad = swarm.nodes[2]
    for info in bad.transfer.store.list_shards():
        bad.transfer.store.drop_shard(info.key, "lost without a word")
    assert (await node.reporter.status())["uncounted"] == []
    book, now = node.swarm.audits, time.monotonic()
    for held in book.due([], now, node.swarm.rng) or list(book._standings):
        if held.peer == bad.peer:
            book.note(held, Verdict.MISSING, now, node.swarm.rng)
    status = await node.reporter.status()
    check_document("status", status)
    assert {(line["peer_id"], line["verdict"]) for line in status["uncounted"]} == {(bad.peer, "missing")}
    assert status["models"][0]["survives_losses"] == 3


async def test_each_loss_is_one_less_to_survive_down_to_unreadable(stored: Stored) -> None:
    swarm, node, model = stored
    said = []
    for gone in (None, *swarm.nodes[1:]):
        if gone:
            swarm.leave(gone)
        said.append((await node.reporter.storage(model))["survives_losses"])
    assert said == [4, 3, 2, 1, 0, -1]


async def test_each_group_says_what_it_survives_and_the_weakest_is_named(stored: Stored) -> None:
    swarm, node, model = stored
    names = [group["group"] for group in (await node.reporter.holders(model))["groups"]]
    assert (await node.reporter.storage(model))["group_survives_losses"] == dict.fromkeys(names, 4)
    located = await node.locator.located_here(model)
    assert located is not None
    weak = located.encodings[2][0].id
    for other in swarm.nodes[3:]:
        for info in other.transfer.store.list_shards():
            if info.key.encoding == weak:
                other.transfer.store.drop_shard(info.key, "lost")
    await swarm.tell()
    storage = await node.reporter.storage(model)
    assert storage["group_survives_losses"] == dict.fromkeys(names, 4) | {names[2]: 1}
    assert (storage["survives_losses"], storage["weakest_group"]) == (1, names[2])
    line = (await node.reporter.status())["models"][0]
    assert (line["survives_losses"], line["weakest_group"]) == (1, names[2])
    assert (await node.reporter.model("alice/little@1")).storage == storage


async def test_figures_of_storage(stored: Stored) -> None:
    swarm, node, model = stored
    infos = [info for other in swarm.nodes for info in other.transfer.store.list_shards()]
    storage = await node.reporter.storage(model)
    assert (storage["shards"], storage["stored_bytes"]) == (len(infos), sum(info.bytes for info in infos))
    assert (storage["k"], storage["n"], storage["holders"]) == (2, 6, 6)
    assert 2.0 < storage["redundancy_factor"] < 3.2


async def test_a_second_encoding_adds_what_it_bears_not_a_sum(stored: Stored, tmp_path: Path) -> None:
    swarm, node, model = stored
    await swarm.nodes[1].publish(tmp_path / "m", name="again", k=1, n=3)
    await swarm.tell()
    await audited(node)
    storage = await node.reporter.storage(model)
    assert (storage["survives_losses"], storage["k"], storage["n"]) == (4, 2, 6)
    await swarm.nodes[1].publish(tmp_path / "m", name="again", k=1, n=6)
    await swarm.tell()
    assert (await node.reporter.storage(model))["survives_losses"] == 4, "nothing counts before it was audited"
    await audited(node)
    assert (await node.reporter.storage(model))["survives_losses"] == 5


async def test_nodes_of_one_domain_count_once(stored: Stored) -> None:
    swarm, node, model = stored
    for other in swarm.nodes[1:5]:
        swarm.change(other, operator="one company")
    assert (await node.reporter.storage(model))["survives_losses"] == 1


async def test_a_model_known_by_its_card_alone_has_nulls(stored: Stored, tmp_path: Path) -> None:
    swarm, _node, _model = stored
    late = await swarm.add(tmp_path)
    (info,) = await late.reporter.models()
    assert (info.name, info.storage["holders"]) == ("alice/little@1", 6)
    unknown = {name for name, value in info.storage.items() if value is None}
    per_group = {"weakest_group", "group_survives_losses"}
    assert unknown == {"groups", "shards", "k", "n", "redundancy_factor", "survives_losses", "stored_bytes"} | per_group


async def test_lists_match_every_word_and_model_falls_back_to_the_manifest(stored: Stored) -> None:
    swarm, node, _model = stored
    assert [info.name for info in await node.reporter.models("ALICE litt")] == ["alice/little@1"]
    assert not await node.reporter.models("alice nothing")
    assert (await node.reporter.model("little")).publisher == node.peer
    swarm.board.cards.clear()
    bare = await node.reporter.model((await node.reporter.holdings())[0]["model_id"])
    assert (bare.name, bare.architecture) == (None, "LlamaForCausalLM")
    assert bare.size_bytes > 0
    with pytest.raises(NotFound):
        await node.reporter.model("little")


async def test_who_holds_what(stored: Stored) -> None:
    swarm, node, model = stored
    told = await node.reporter.holders(model)
    assert told["layers"] == 3
    for group in told["groups"]:
        assert sorted(peer for peers in group["shards"].values() for peer in peers) == sorted(other.peer for other in swarm.nodes)
        assert group["survives_losses"] == len(swarm.nodes) - group["k"]
    swarm.leave(swarm.nodes[1])
    left = await node.reporter.holders(model)
    assert {group["survives_losses"] for group in left["groups"]} == {len(swarm.nodes) - 1 - group["k"] for group in told["groups"]}


async def test_health_asks_nobody_and_needs_a_fresh_probe(stored: Stored) -> None:
    swarm, node, _model = stored
    for other in swarm.nodes[1:]:
        swarm.leave(other)
    nothing: Any = None
    worker: Any = SimpleNamespace(running=False, failures=0, held_back=0.0, ended="it isn't running")
    room: Any = SimpleNamespace(loaded=list, memory=7, line=WaitingLine(time.monotonic))
    transfer: Any = node.transfer
    probe = Probe(node.swarm, transfer, worker, room, lambda: "https://127.0.0.1:1", bytes(32))
    unreadable = [0]
    gateway = NodeGateway(
        node.reporter, nothing, nothing, nothing, nothing, nothing, nothing, probe, nothing, unreadable=lambda: unreadable[0]
    )
    well = {"status": "healthy", "reason": None}
    health = await gateway.health()
    assert (health["status"], health["last_probe"]) == ("degraded", None)
    assert health["model_registry"] == well | {"models": 1, "unreadable_groups": 0}
    idle = {"worker": "not started", "stages_loaded": 0, "stages": [], "sessions": 0, "memory": 7, "waiting": 0}
    assert health["compute_network"] == well | idle
    assert health["storage_network"]["peers_alive"] == 0
    outcome = await probe.once()
    assert not outcome.passed
    assert "data plane" in str(outcome.fault)
    health = await gateway.health()
    assert (health["status"], "data plane" in health["reason"], health["storage_network"]["status"]) == ("unhealthy", True, "unhealthy")
    probe.last = Outcome(time.time(), True, 0.01)
    assert (await gateway.health())["reason"] == "none of the 5 peers known answers"
    swarm.board.away.clear()
    assert (await gateway.health())["status"] == "healthy"
    unreadable[0] = 2
    assert (await gateway.health())["model_registry"]["status"] == (await gateway.health())["status"] == "degraded"
    unreadable[0] = 0
    worker.failures, worker.held_back, worker.ended = 3, 9.0, "the worker ended (signal 9, SIGKILL)"
    assert "SIGKILL" in (await gateway.health())["reason"]
    worker.failures, worker.held_back = 0, 0.0
    probe.last = Outcome(0.0, True, 0.01)
    assert (await gateway.health())["status"] == "degraded"


def test_apart_finds_the_most_shards_in_domains_of_their_own() -> None:
    assert apart({}) == {}
    assert len(apart({1: ["a"], 2: ["a", "b"]})) == 2
    assert len(apart({1: ["a", "b"], 2: ["a"], 3: ["b"]})) == 2
    assert apart({0: ["a"], 1: ["a"]}) in ({0: "a"}, {1: "a"})
    assert len(apart({shard: ["a", "b", "c"] for shard in range(9)})) == 3
    assert apart({0: []}) == {}


def test_a_tally_counts_what_lies_there() -> None:
    one, two, three = PeerId("one"), PeerId("two"), PeerId("three")
    tally = Tally(2, 3)
    assert (tally.least(), tally.shards(), tally.stored_bytes(), tally.survives_losses({})) == (0, 0, 0, 0)
    tally.durable = {0: {0: one, 1: two, 2: three}, 1: {0: one, 1: two, 2: three}}
    tally.shard_bytes = {0: 10, 1: 1}
    assert (tally.enough, tally.least(), tally.shards(), tally.stored_bytes(), len(tally.holders())) == (3, 3, 6, 33, 3)
    assert tally.survives_losses({}) == 1
    assert tally.survives_losses({"one": "lan", "two": "lan"}) == 0
