"""`explain` tells the route, the reasons for and against every peer, and what to expect, and runs nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node.explain import Explainer
from node.locate import Located
from node.model_cost import StageCost
from node.model_folder import scan
from node.model_manifest import build_manifest
from node.route import Router
from node.swarm.interface import HoldingView
from protocol.errors import BadInput
from protocol.ids import PeerId
from protocol.manifest import model_id
from protocol.messages import StageSpec
from protocol.records import Serving
from runtime.engine_choice import Choice
from runtime.expectation import OverBudget, Paces
from tests.node.verb_fakes import Board, FakeSwarm, node_record, small_model

ME, FRIEND, STRANGER, KEEPER = PeerId("me"), PeerId("friend"), PeerId("stranger"), PeerId("keeper")


def setting(tmp_path: Path, memory: int, budget: float = 0.4, privacy: str = "trusted") -> tuple[Explainer, Router, Located]:
    manifest, data = build_manifest(scan(small_model(tmp_path / "m", layers=6)), lambda done, total: None)
    located = Located(model_id(data), manifest, data)
    records = {peer: node_record() for peer in (ME, FRIEND, STRANGER)} | {KEEPER: node_record(lend="storage", memory=None)}
    swarm: Any = FakeSwarm(ME, Board(records=records))
    swarm.trust_all = False
    swarm.trust(FRIEND)
    swarm.resolve = lambda name: located.model
    router = Router(ME, swarm, SimpleNamespace(memory=memory), privacy, "remote", budget)  # type: ignore[arg-type]

    async def locate(model: bytes) -> Located:
        return located

    room = SimpleNamespace(engine=lambda _located, first, end, precision, tokens: Choice("llama", f"{first}..{end} {precision} {tokens}"))
    return Explainer(ME, swarm, SimpleNamespace(locate=locate), router, Paces(ME), room), router, located  # type: ignore[arg-type]


def over_budget(tmp_path: Path) -> tuple[Explainer, Router, Located]:
    """64 tokens of the model fit no node alone, and two together are too far from each other."""
    explainer, router, located = setting(tmp_path, 1 << 30, budget=0.001)
    most = StageCost(located.manifest, "bf16").total(0, 6, 64) - 1
    router._room = SimpleNamespace(memory=most)  # type: ignore[assignment]
    router._swarm.board.records[FRIEND] = node_record(memory=most)  # type: ignore[attr-defined]
    return explainer, router, located


async def test_here_when_it_fits_and_why_the_others_not(tmp_path: Path) -> None:
    explainer, _, _ = setting(tmp_path, 1 << 30)
    told = await explainer.explain("m")
    assert (told["kind"], told["stages"][0]["peer"], told["stages"][0]["here"]) == ("here", ME, True)
    assert told["engine"] == {"name": "llama", "why": "0..6 bf16 2048"}
    assert told["expected"]["tokens_per_second"] > 0
    assert told["expected"]["first_token_seconds"] > 0
    assert told["budget"] == {"needed_ms": 0.0, "budget_ms": 400.0, "within": True, "refused": False}
    verdicts = {line["peer"]: line["verdict"] for line in told["considered"]}
    assert verdicts[ME] == "taken"
    assert "isn't needed" in verdicts[FRIEND]
    assert "isn't trusted" in verdicts[STRANGER]
    assert verdicts[KEEPER] == "it lends no compute"
    assert {line["peer"] for line in told["considered"] if line["refused"]} == {STRANGER, KEEPER}


async def test_no_route_is_told_with_the_same_list(tmp_path: Path) -> None:
    explainer, _, _ = setting(tmp_path, 10, privacy="local")
    told = await explainer.explain("m")
    assert told["kind"] == "none"
    assert "no route" in told["why"]
    assert told["expected"] is None
    assert told["engine"] is None
    assert {line["verdict"] for line in told["considered"] if line["peer"] == FRIEND} == {"--privacy local: nothing leaves this node"}


@pytest.mark.parametrize("tokens", [0, -1, 1 << 30])
async def test_tokens_out_of_range_are_refused(tmp_path: Path, tokens: int) -> None:
    explainer, _, _ = setting(tmp_path, 1 << 30)
    with pytest.raises(BadInput, match="tokens"):
        await explainer.explain("m", tokens)


async def test_a_route_over_the_budget_is_refused_and_explained(tmp_path: Path) -> None:
    explainer, router, located = over_budget(tmp_path)
    told = await explainer.explain("m", 64)
    assert told["kind"] == "pipeline"
    assert told["budget"]["refused"]
    assert told["budget"]["needed_ms"] > 1.0
    assert not (await explainer.explain("m", 64, force=True))["budget"]["refused"]
    with pytest.raises(OverBudget):
        router.plan(located, 64, "bf16")
    assert len(router.plan(located, 64, "bf16", force=True).stages) == 2


async def test_a_loaded_chain_over_budget_isnt_what_runs(tmp_path: Path) -> None:
    explainer, router, located = setting(tmp_path, 1 << 30, budget=0.001, privacy="swarm")
    router._room = SimpleNamespace(memory=10)  # type: ignore[assignment]
    board, cost = router._swarm.board, StageCost(located.manifest, "bf16")  # type: ignore[attr-defined]
    small = max(cost.total(0, 3, 64), cost.total(3, 6, 64))
    half = PeerId("half")
    board.records |= {STRANGER: node_record(memory=small), half: node_record(memory=small)}
    for peer, first in ((STRANGER, 0), (half, 3)):
        loaded = Serving(first, first + 3, "bf16", True, 1)
        board.holdings[peer, located.model] = HoldingView(peer, located.model, [], [], (), (loaded,))
    board.records[FRIEND] = node_record(memory=small)
    assert small < cost.total(0, 6, 64)
    refused = await explainer.explain("m", 64)
    assert refused["budget"]["refused"], "no route within the budget: what force would run is told"
    assert (refused["kind"], "--force" in refused["hint"]) == ("pipeline", True)
    board.records[FRIEND] = node_record()
    told, plan = await explainer.explain("m", 64), router.plan(located, 64, "bf16")
    assert (told["kind"], told["stages"][0]["peer"]) == ("peer", FRIEND)
    assert plan.stages == [StageSpec(FRIEND, 0, 6)]
    assert told["budget"] == {"needed_ms": 0.0, "budget_ms": 1.0, "within": True, "refused": False}
    assert told["hint"] is None
