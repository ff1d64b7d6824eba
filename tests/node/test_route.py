"""Who may run layers for this node: the owner's privacy, what peers lend, and plans that every stage will take."""

from __future__ import annotations

import random
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
from protocol.records import Held
from runtime.routing import Offer, Shape, plan_route
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
