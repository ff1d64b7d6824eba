"""Who may run layers for this node: the owner's privacy, what peers lend, and plans that every stage will take."""

from __future__ import annotations

import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.figures import PeerFigures
from node.locate import Located
from node.model_cost import StageCost
from node.model_folder import scan
from node.model_manifest import build_manifest
from node.route import Router
from node.swarm.interface import HoldingView
from protocol.errors import BadInput, Unavailable
from protocol.ids import PeerId
from protocol.manifest import model_id
from protocol.messages import StageSpec
from protocol.records import Held, Serving
from runtime.expectation import OverBudget
from runtime.routing import Offer, Plan, Shape, plan_route
from tests.node.verb_fakes import Board, FakeSwarm, node_record, small_model

ME, FRIEND, STRANGER = PeerId("me"), PeerId("friend"), PeerId("stranger")


@pytest.fixture
def located(tmp_path: Path) -> Located:
    manifest, data = build_manifest(scan(small_model(tmp_path / "m", layers=6)), lambda done, total: None)
    return Located(model_id(data), manifest, data)


def setting(privacy: str, memory: int = 1 << 30) -> tuple[Router, FakeSwarm]:
    board = Board(records={peer: node_record() for peer in (ME, FRIEND, STRANGER)})
    swarm = FakeSwarm(ME, board)
    swarm.trust_all = False
    swarm.trust(FRIEND)
    room: Any = SimpleNamespace(memory=memory)
    return Router(ME, swarm, room, privacy, "remote", 10.0, PeerFigures(), random.Random(1)), swarm


def offered(router: Router, located: Located, *avoid: PeerId) -> list[str]:
    return [offer.peer for offer in router.offers(located, set(avoid))]


@pytest.mark.parametrize(("privacy", "peers"), [("local", ["me"]), ("trusted", ["me", "friend"]), ("swarm", ["me", "friend", "stranger"])])
def test_privacy_decides_who_is_asked(located: Located, privacy: str, peers: list[str]) -> None:
    router, _swarm = setting(privacy)
    assert offered(router, located) == peers


@pytest.mark.parametrize("changes", [{"lend": "storage"}, {"lend": "none"}, {"memory": None}, {"memory": 0}])
def test_who_lends_no_compute_isnt_asked(located: Located, changes: dict[str, Any]) -> None:
    router, swarm = setting("trusted")
    swarm.board.records[FRIEND] = node_record(**changes)
    assert offered(router, located) == ["me"]


def test_away_banned_and_avoided_peers_arent_asked(located: Located) -> None:
    router, swarm = setting("swarm")
    assert offered(router, located, STRANGER) == ["me", "friend"]
    assert offered(router, located, ME) == ["friend", "stranger"]
    swarm.board.away.add(FRIEND)
    swarm.bans.add(STRANGER)
    assert offered(router, located) == ["me"]


def test_offers_carry_what_peers_said_of_a_layer(located: Located) -> None:
    router, _swarm = setting("swarm")
    router._figures.said(FRIEND, {"layer": 0.002}, time.monotonic())
    assert {offer.peer: offer.layer for offer in router.offers(located, set())} == {"me": None, "friend": 0.002, "stranger": None}


def test_local_never_leaves_even_when_it_doesnt_fit(located: Located) -> None:
    router, _swarm = setting("local", memory=10)
    with pytest.raises(Unavailable, match="1 nodes"):
        router.plan(located, 16, "bf16")


def test_here_if_it_fits_else_at_the_friend_that_holds_most(located: Located) -> None:
    router, swarm = setting("swarm")
    assert router.plan(located, 16, "bf16").kind == "here"
    router, swarm = setting("swarm", memory=10)
    swarm.board.holdings[FRIEND, located.model] = HoldingView(FRIEND, located.model, [Held(0, bytes(32), [0])], [])
    swarm.board.holdings[STRANGER, located.model] = HoldingView(STRANGER, located.model, [Held(0, bytes(32), [0, 1])], [])
    plan = router.plan(located, 16, "bf16")
    assert (plan.kind, plan.stages[0].peer) == ("peer", STRANGER)
    assert router.plan(located, 16, "bf16", [STRANGER]).stages[0].peer == FRIEND


def test_a_model_without_layers_can_be_fetched_not_run(located: Located) -> None:
    router, _swarm = setting("swarm")
    kept = [group for group in located.manifest.groups if not group.name.startswith("layer")]
    located.manifest.groups[:] = kept
    with pytest.raises(BadInput, match="no layers"):
        router.plan(located, 16, "bf16")


def test_every_stage_of_a_plan_fits_its_node_with_its_kv(located: Located) -> None:
    cost = StageCost(located.manifest, "bf16")
    memory = max(cost.total(first, first + 2, 64) for first in (0, 2, 4))
    assert memory < cost.total(0, 6, 64)
    router, swarm = setting("swarm", memory)
    for peer in (FRIEND, STRANGER):
        swarm.board.records[peer] = node_record(memory=memory)
    plan = router.plan(located, 64, "bf16")
    assert plan.kind == "pipeline"
    assert all(cost.total(stage.first, stage.end, 64) <= memory for stage in plan.stages)
    with pytest.raises(Unavailable):
        router.plan(located, 1 << 20, "bf16")


def test_fp32_takes_twice_the_weights_of_bf16(located: Located) -> None:
    half, whole = (StageCost(located.manifest, precision).total(2, 3, 0) for precision in ("bf16", "fp32"))
    assert whole > 1.9 * half


def tight(first: int, end: int) -> int:
    """Six layers of 10; the embedding takes 40 more, the head 60."""
    return 10 * (end - first) + (40 if first == 0 else 0) + (60 if end == 6 else 0)


def test_the_head_goes_to_the_roomiest_peer() -> None:
    plan = plan_route(Shape(6, tight), [Offer("me", 60, here=True), Offer("small", 35), Offer("large", 75)])
    assert [stage.peer for stage in plan.stages] == ["me", "small", "large"]


def test_a_node_too_small_for_any_stage_doesnt_spoil_the_route() -> None:
    plan = plan_route(Shape(6, tight), [Offer("me", 20, here=True), Offer("a", 90), Offer("b", 90)])
    assert [stage.peer for stage in plan.stages] == ["a", "b"]
    assert plan.stages[-1].end == 6


def test_a_model_that_cant_be_cut_runs_whole_or_not_at_all(located: Located) -> None:
    located.manifest.summary.model_type = "zaya"
    cost = StageCost(located.manifest, "bf16").total(0, 6, 64)
    roomy, _swarm = setting("local", cost)
    assert roomy.plan(located, 64, "bf16").kind == "here"
    narrow, swarm = setting("trusted", cost - 1)
    swarm.board.records[FRIEND] = node_record(memory=cost - 1)
    with pytest.raises(Unavailable, match=r"zaya models can't be cut \(a layer hands the next what it added\)"):
        narrow.plan(located, 64, "bf16")


def loads(swarm: FakeSwarm, located: Located, peer: PeerId, first: int, end: int, layer_us: int = 1_000) -> None:
    swarm.board.holdings[peer, located.model] = HoldingView(peer, located.model, [], [], (), (Serving(first, end, "bf16", True, layer_us),))


def test_one_peer_runs_whole_what_cant_be_cut_though_others_have_loaded_parts(located: Located) -> None:
    located.manifest.summary.model_type = "zaya"
    router, swarm = setting("swarm", memory=10)
    loads(swarm, located, FRIEND, 0, 3)
    loads(swarm, located, STRANGER, 3, 6)
    swarm.board.records[STRANGER] = node_record(memory=StageCost(located.manifest, "bf16").total(3, 6, 64))
    plan = router.plan(located, 64, "bf16")
    assert (plan.kind, plan.stages) == ("peer", [StageSpec(FRIEND, 0, 6)])
    loads(swarm, located, FRIEND, 0, 6)
    assert "has it loaded" in router.plan(located, 64, "bf16").why


def test_one_peer_that_has_it_loaded_comes_before_any_chain(located: Located) -> None:
    other = PeerId("other")
    router, swarm = setting("swarm", memory=10)
    swarm.board.records[other] = node_record()
    loads(swarm, located, FRIEND, 0, 3, 1)
    loads(swarm, located, STRANGER, 3, 6, 1)
    loads(swarm, located, other, 0, 6, 50_000)
    plan = router.plan(located, 64, "bf16")
    assert (plan.kind, plan.stages) == ("peer", [StageSpec(other, 0, 6)])


def test_a_reply_goes_over_stages_that_run_others_of_this_node(located: Located) -> None:
    other = PeerId("other")
    cost = StageCost(located.manifest, "bf16")
    router, swarm = setting("swarm", memory=max(cost.total(0, 4, 64), cost.total(2, 6, 64)))
    for peer in (FRIEND, STRANGER, other):
        swarm.board.records[peer] = node_record(memory=router._room.memory + 1_000)
    running = [StageSpec(ME, 0, 3), StageSpec(STRANGER, 3, 6)]
    assert router.plan(located, 64, "bf16").stages != running
    assert router.plan(located, 64, "bf16", (), running).stages == running
    assert router.plan(located, 64, "bf16", {STRANGER}, running).stages[-1].peer != STRANGER
    assert router.plan(located, 64, "bf16", (), running[:1]).stages == router.plan(located, 64, "bf16").stages, "no chain"
    swarm.board.records[other] = node_record()
    loads(swarm, located, other, 0, 6)
    assert router.plan(located, 64, "bf16", (), running).stages == [StageSpec(other, 0, 6)], "one hop is less than two"


def test_a_peer_that_runs_one_stage_is_not_taken_for_another_that_would_not_fit_beside_it(located: Located) -> None:
    other, cost = PeerId("other"), StageCost(located.manifest, "bf16")
    router, swarm = setting("swarm", memory=10)
    one = max(cost.total(first, end, 64) for first, end in ((0, 2), (2, 4), (4, 6)))
    for peer in (FRIEND, STRANGER, other):
        swarm.board.records[peer] = node_record(memory=one)
    loads(swarm, located, other, 0, 2)
    loads(swarm, located, STRANGER, 2, 4)
    both = (Serving(2, 4, "bf16", True, 1), Serving(4, 6, "bf16", True, 1))
    swarm.board.holdings[FRIEND, located.model] = HoldingView(FRIEND, located.model, [], [], (), both)
    wanted = [StageSpec(other, 0, 2), StageSpec(STRANGER, 2, 4), StageSpec(FRIEND, 4, 6)]
    assert router.plan(located, 64, "bf16").stages == wanted
    assert router.plan(located, 64, "bf16", (), [StageSpec(FRIEND, 4, 6)]).stages == wanted
    busy = router.plan(located, 64, "bf16", (), [StageSpec(FRIEND, 2, 4)]).stages
    assert StageSpec(FRIEND, 4, 6) not in busy, "it runs layers 2 to 4"
    swarm.board.records[FRIEND] = node_record(memory=2 * one)
    assert router.plan(located, 64, "bf16", (), [StageSpec(FRIEND, 2, 4)]).stages == wanted, "there is room for both"


def over_budget(located: Located) -> tuple[Router, FakeSwarm]:
    """A node for which every pipeline is over the budget."""
    router, swarm = setting("swarm", StageCost(located.manifest, "bf16").total(0, 6, 64) - 1)
    for peer in (FRIEND, STRANGER):
        swarm.board.records[peer] = node_record(memory=router._room.memory)
    router.budget = 0.0001
    return router, swarm


def test_a_far_peer_is_left_out_where_the_near_ones_have_the_memory(located: Located) -> None:
    roomy = PeerId("roomy")
    router, swarm = setting("swarm", StageCost(located.manifest, "bf16").total(0, 6, 64) - 2)
    router.budget = 0.4
    for peer, more in ((FRIEND, 0), (STRANGER, 0), (roomy, 1)):
        swarm.board.records[peer] = node_record(memory=router._room.memory + more)
    assert roomy in {stage.peer for stage in router.plan(located, 64, "bf16").stages}
    swarm.rtts[roomy] = 1.5
    assert [stage.peer for stage in router.plan(located, 64, "bf16").stages] == [ME, FRIEND]
    assert roomy in {stage.peer for stage in router.plan(located, 64, "bf16", force=True).stages}
    swarm.rtts = dict.fromkeys((FRIEND, STRANGER, roomy), 1.5)
    with pytest.raises(OverBudget, match="1500 ms"):
        router.plan(located, 64, "bf16")


def test_a_forced_reply_is_replaced_over_budget(located: Located) -> None:
    router, _swarm = over_budget(located)
    running = Plan("peer", [StageSpec(FRIEND, 0, 6)], "it has begun")  # where nobody else has room for the stage
    with pytest.raises(OverBudget):
        router.replace(located, running, {FRIEND}, 64, "bf16", {FRIEND})
    plan = router.replace(located, running, {FRIEND}, 64, "bf16", {FRIEND}, force=True)
    assert [stage.peer for stage in plan.stages] == [ME, STRANGER]


def test_a_reply_that_has_begun_goes_over_what_is_loaded_though_loading_would_pay(located: Located) -> None:
    far, near = PeerId("far"), PeerId("near")
    router, swarm = setting("swarm", memory=10)
    for peer in (far, near):
        swarm.board.records[peer] = node_record()
    swarm.rtts = {far: 0.3, near: 0.3, FRIEND: 0.001, STRANGER: 0.001}
    loads(swarm, located, far, 0, 3)
    loads(swarm, located, near, 3, 6)
    assert router.plan(located, 1_000, "bf16", {ME}).stages == [StageSpec(FRIEND, 0, 6)]
    chain = router.plan(located, 1_000, "bf16", {ME}, begun=True)
    assert [stage.peer for stage in chain.stages] == [far, near]


def test_an_earlier_route_is_taken_again_while_it_may_be(located: Located) -> None:
    router, swarm = setting("trusted")
    stages = [StageSpec(FRIEND, 0, 3), StageSpec(ME, 3, 6)]
    again = router.again(located, stages, 16, "bf16")
    assert again is not None
    assert (again.kind, again.stages) == ("pipeline", stages)
    one = router.again(located, [StageSpec(FRIEND, 0, 6)], 16, "bf16")
    assert one is not None
    assert one.kind == "peer"
    assert router.again(located, [StageSpec(STRANGER, 0, 3), StageSpec(ME, 3, 6)], 16, "bf16") is None  # isn't trusted
    assert router.again(located, [StageSpec(FRIEND, 0, 3)], 16, "bf16") is None  # not all layers
    assert router.again(located, stages, 1 << 30, "bf16") is None  # no memory for so many positions
    swarm.bans.add(FRIEND)
    assert router.again(located, stages, 16, "bf16") is None


def test_an_earlier_route_beyond_the_budget_is_left(located: Located) -> None:
    router, _swarm = over_budget(located)
    stages = [StageSpec(FRIEND, 0, 3), StageSpec(STRANGER, 3, 6)]
    assert router.again(located, stages, 16, "bf16") is None
    assert router.again(located, stages, 16, "bf16", force=True) is not None
