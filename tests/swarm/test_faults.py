"""A swarm under faults, with real processes: frozen and killed peers, noise on disks, dead workers, clients that leave.

One swarm serves all tests of this file; each puts right what it broke, and the last one leaves nothing. The bound on memory is such
that the tiny model takes three stages, so every reply is a pipeline's.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import CommandFailed, Node, Swarm
from tests.support.synthetic import tiny_llama
from tests.support.wait import wait_until
from tests.swarm import tools

pytestmark = pytest.mark.swarm

K, N = 2, 4
PROMPT, TOKENS = "abc", 120
UNROUTABLE, DELAY = 10.0, 2.0


@dataclass
class Stage:
    """The scene: four holders, a fifth node that holds nothing and asks, the model, its files' digests, the undisturbed reply."""

    swarm: Swarm
    asker: Node
    model: str
    model_id: str
    files: dict[str, str]
    text: str = ""

    def ask(self, meanwhile: Callable[[tools.Reply], None] | None = None) -> tools.Reply:
        return tools.ask(self.asker, self.model, PROMPT, TOKENS, meanwhile=meanwhile)

    def fetch(self, folder: Path) -> float:
        """Seconds of a fetch by the asker that must be bit-identical."""
        began = time.monotonic()
        self.asker.cli("fetch", self.model, str(folder))
        took = time.monotonic() - began
        assert tools.digests(folder) == self.files
        return took

    def node(self, peer: str) -> Node:
        return next(node for node in self.swarm.nodes if node.peer_id == peer)

    def others_in(self, route: list[dict[str, Any]]) -> list[Node]:
        return [self.node(one["peer"]) for one in route if one["peer"] != self.asker.peer_id]

    def alive(self) -> set[str]:
        return {peer["peer_id"] for peer in self.asker.cli("status")["peers"] if peer["alive"]}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("faults")
    model = tiny_llama(folder / "model", layers=6)
    memory = tools.memory_for_stages(model, 2, 2 * TOKENS)
    with Swarm(folder, N, "--lend", "both", "--max-memory", memory) as swarm:
        told = swarm.nodes[0].cli("publish", str(model), "--name", "tiny", "--k", str(K), "--n", str(N))
        asker = swarm.add("--join", swarm.nodes[1].ticket)
        scene = Stage(swarm, asker, told["name"], told["model_id"], tools.digests(model))
        whole = scene.ask()
        assert whole.error is None
        assert len(whole.route) >= 3
        # A node that has never run anything takes seconds to begin: nothing that these tests measure.
        idle = [node for node in swarm.nodes if tools.process_of(node, tools.WORKER) is None]
        for node in idle:
            tools.ask(node, told["name"], PROMPT, 1)
        scene.text = whole.text
        yield scene


def test_a_client_that_leaves_stops_the_work_everywhere(stage: Stage) -> None:
    with tools.ChatStream(stage.asker, stage.model, PROMPT, TOKENS) as chat:
        chat.read(2)
        running = [stage.node(peer) for peer, _, _ in tools.stages_of(chat.planned)]
        assert len(running) > 1
        assert all(tools.gauge(node, "mf_stage_sessions") == 1 for node in running)
    left = time.monotonic()
    wait_until(lambda: not any(tools.gauge(node, "mf_stage_sessions") for node in running), 10.0, "the stages to be free")
    tools.report("client left to all stages free", f"{time.monotonic() - left:.2f} s")


@pytest.mark.parametrize("whose", ["asker", "other"])
def test_a_worker_killed_in_mid_reply_leaves_the_node_alive(stage: Stage, whose: str) -> None:
    node = stage.asker

    def kill_worker(reply: tools.Reply) -> None:
        nonlocal node
        node = stage.asker if whose == "asker" else stage.others_in(reply.planned)[0]
        worker = tools.process_of(node, tools.WORKER)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)

    whole = stage.ask(kill_worker)
    node.event("worker_ended", 5.0, code=-signal.SIGKILL)
    tools.report(f"worker of the {whose} killed", f"pause {whole.longest_pause:.2f} s, error {whole.error}")
    if whole.error is None:
        assert whole.text == stage.text
    else:
        assert "worker" in whole.error.message
        assert stage.text.startswith(whole.text)
    assert stage.ask().text == stage.text


def test_the_transfer_process_killed_comes_back_by_itself(stage: Stage, tmp_path: Path) -> None:
    """At the asker and at all holders but one: nothing can be fetched before they are back."""
    nodes = [stage.asker, *stage.swarm.nodes[: N - 1]]
    before = {node.peer_id: tools.process_of(node, tools.TRANSFER) for node in nodes}
    for pid in before.values():
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    tries = 0

    def fetched() -> bool:
        nonlocal tries
        tries += 1
        try:
            stage.fetch(tmp_path / str(tries))
        except CommandFailed as failed:
            if failed.code != 6:
                raise
            return False
        return True

    wait_until(fetched, 30.0, "a fetch")
    tools.report("transfer processes killed to a whole fetch", f"{time.monotonic() - killed:.2f} s, {tries} tries")
    for node in nodes:
        now = tools.process_of(node, tools.TRANSFER)
        assert now is not None
        assert now != before[node.peer_id]
        assert node.alive
        assert node.http("GET", "/health")[0] == 200


def test_frozen_and_killed_peers_are_got_around(stage: Stage, tmp_path: Path) -> None:
    """One stage freezes and another dies in the middle of replies: those go on. Soon neither is asked any more, and fetches hardly wait."""
    quiet = min(stage.fetch(tmp_path / f"quiet{number}") for number in range(2))
    frozen = killed = stage.asker
    began = 0.0

    def freeze(reply: tools.Reply) -> None:
        nonlocal frozen, began
        frozen = stage.others_in(reply.planned)[0]
        frozen.freeze()
        began = time.monotonic()

    def kill(reply: tools.Reply) -> None:
        nonlocal killed
        killed = next(node for node in stage.others_in(reply.planned) if node is not frozen)
        killed.kill()

    slow: list[float] = []
    try:
        whole = stage.ask(freeze)
        slow += [stage.fetch(tmp_path / f"{number}") for number in range(2)]
        wait_until(lambda: frozen.peer_id not in stage.alive(), tools.SLACK * UNROUTABLE, "the frozen peer not shown as alive")
        unroutable = time.monotonic() - began
    finally:
        frozen.thaw()
    wait_until(lambda: frozen.peer_id in stage.alive(), 30.0, "the thawed peer to be alive again")
    other = stage.ask(kill)
    slow += [stage.fetch(tmp_path / f"{number}") for number in range(2, 4)]
    assert killed.peer_id not in stage.alive()
    killed.start()
    wait_until(lambda: killed.peer_id in stage.alive(), 30.0, "the killed peer to be back")

    tools.report("pause of a reply", f"stage frozen {whole.longest_pause:.2f} s, stage killed {other.longest_pause:.2f} s")
    tools.report("frozen peer not alive any more", f"after {unroutable:.1f} s")
    tools.report("a fetch", f"{quiet:.2f} s before, then {', '.join(f'{took:.2f}' for took in slow)} s")
    for reply, victim in ((whole, frozen), (other, killed)):
        assert reply.error is None
        assert reply.replaced >= 1
        assert victim.peer_id not in {one["peer"] for one in reply.route}
        assert reply.text == stage.text
        stage.asker.event("peer_unroutable", 1.0, peer=victim.peer_id)
        assert reply.longest_pause <= tools.SLACK * DELAY
    assert max(slow) - quiet <= tools.SLACK * DELAY


def test_noise_on_disks_is_found_blamed_and_got_around(stage: Stage, tmp_path: Path) -> None:
    """Of one group, the shards that are read first are noise at n - k holders; what is left just suffices."""
    group = max(tools.holders_of(stage.asker, stage.model), key=lambda group: group["group"] == "layer.2")
    bad = [stage.node(group["shards"][str(shard)][0]) for shard in range(N - K)]
    for node in bad:
        files = tools.shard_files(node, group["encoding"])
        assert len(files) == 1, "one shard of a group per node"
        tools.overwrite_with_noise(files[0][1])
    stage.fetch(tmp_path / "noise")
    blamed = [line for line in stage.asker.cli("status")["blamed"] if line["shard"].startswith(group["encoding"])]
    wanted = {node.peer_id for node in bad}
    assert {line["peer_id"] for line in blamed} <= wanted
    if not any('"hedged"' in line for line in stage.asker.log.read_text().splitlines()):
        assert {line["peer_id"] for line in blamed} == wanted
    assert blamed
    told = tools.metric(stage.asker, "mf_blamed_shards")
    for line in blamed:
        stage.asker.event("peer_blamed", 1.0, peer=line["peer_id"], shard=line["shard"])
        assert told[f'{{peer="{line["peer_id"]}"}}'] >= 1
    assert stage.ask().text == stage.text


def test_too_few_holders_left_is_said_with_names(stage: Stage, tmp_path: Path) -> None:
    """The last test: all but k - 1 holders die."""
    for node in stage.swarm.nodes[: N - K + 1]:
        node.kill()
    wait_until(lambda: len(stage.alive()) == 1, 30.0, "the dead not shown as alive")
    survivor = stage.swarm.nodes[N - 1]
    with pytest.raises(CommandFailed) as caught:
        stage.fetch(tmp_path / "none")
    error = caught.value.error
    assert caught.value.code == 6
    assert error["code"] == "unavailable"
    assert error["details"]["missing"] == 1
    assert error["details"]["group"] in error["message"]
    assert error["details"]["asked"] == [survivor.peer_id]
    assert not (tmp_path / "none").exists()
    fresh = stage.swarm.add("--join", survivor.ticket, "--max-memory", "1GB")
    status, _, body = fresh.http(
        "POST", "/v1/chat/completions", {"model": stage.model_id, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    )
    assert status == 503, body
    assert b"missing" in body
