"""A swarm under faults, with real processes: frozen and killed peers, noise on disks, dead workers, clients that leave.

Each test puts right what it broke; the last one leaves nothing.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.processes import CommandFailed
from tests.support.wait import wait_until
from tests.swarm import tools
from tests.swarm.scene import LONG, PROMPT, TOKENS, K, N, Scene

pytestmark = pytest.mark.swarm

UNROUTABLE, DELAY = 10.0, 2.0


def test_a_client_that_leaves_stops_the_work_everywhere(scene: Scene) -> None:
    with tools.ChatStream(scene.asker, scene.model, PROMPT, LONG) as chat:
        chat.read(2)
        running = [scene.node(peer) for peer, _, _ in tools.stages_of(chat.planned)]
        assert len(running) > 1
        assert all(tools.gauge(node, "mf_stage_sessions") == 1 for node in running)
    left = time.monotonic()
    wait_until(lambda: not any(tools.gauge(node, "mf_stage_sessions") for node in running), 10.0, "the stages to be free")
    tools.report("client left to all stages free", f"{time.monotonic() - left:.2f} s")


@pytest.mark.parametrize("whose", ["asker", "other"])
def test_a_worker_killed_in_mid_reply_leaves_the_node_alive(scene: Scene, whose: str) -> None:
    node = scene.asker

    def kill_worker(reply: tools.Reply) -> None:
        nonlocal node
        node = scene.asker if whose == "asker" else scene.others_in(reply.planned)[0]
        worker = tools.process_of(node, tools.WORKER)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)

    whole = scene.ask(kill_worker)
    node.event("worker_ended", 5.0, code=-signal.SIGKILL)
    tools.report(f"worker of the {whose} killed", f"pause {whole.longest_pause:.2f} s, error {whole.error}")
    if whole.error is None:
        assert whole.text == scene.text
    else:
        assert "worker" in whole.error.message
        assert scene.text.startswith(whole.text)
    assert scene.ask().text == scene.text


def test_the_transfer_process_killed_comes_back_by_itself(scene: Scene, tmp_path: Path) -> None:
    """At the asker and at all holders but one: nothing can be fetched before they are back."""
    nodes = [scene.asker, *scene.swarm.nodes[: N - 1]]
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
            scene.fetch(tmp_path / str(tries))
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


def test_noise_on_disks_is_found_blamed_and_got_around(scene: Scene, tmp_path: Path) -> None:
    """Of one group the shards that a newcomer reads first are noise at n - k holders; what is left just suffices."""
    newcomer = scene.swarm.add("--join", scene.swarm.nodes[1].ticket)
    group = max(tools.holders_of(newcomer, scene.model_id), key=lambda group: group["group"] == "layer.0")
    bad = {group["shards"][str(shard)][0] for shard in range(N - K)}
    assert len(bad) == N - K
    files = [tools.shard_files(scene.node(peer), group["encoding"]) for peer in bad]
    assert [len(found) for found in files] == [1] * len(bad), "one shard of a group per node"
    for [(_, path)] in files:
        tools.overwrite_with_noise(path)
    # The newcomer runs the first layers itself, so that it reads them for its reply.
    reply = tools.ask(newcomer, scene.model_id, PROMPT, TOKENS)
    newcomer.cli("fetch", scene.model_id, str(tmp_path / "noise"))
    for [(_, path)] in files:
        tools.overwrite_with_noise(path)  # twice is as before
    assert (reply.error, reply.text) == (None, scene.text)
    assert tools.digests(tmp_path / "noise") == scene.files
    lines = newcomer.cli("status")["blamed"]
    assert {line["shard"].rpartition("/")[0] for line in lines} == {group["encoding"]}
    blamed = {line["peer_id"] for line in lines}
    assert blamed  # whom it asks is by how fast it saw them; test_audits.py has all of them named
    assert blamed <= bad
    told = tools.metric(newcomer, "mf_blamed_shards")
    for peer in blamed:
        newcomer.event("peer_blamed", 1.0, peer=peer)
        assert told[f'{{peer="{peer}"}}'] == 1
    newcomer.kill()


def test_a_reply_goes_on_when_a_stage_freezes_or_dies(scene: Scene) -> None:
    """In the middle of a reply each; neither is asked any more, and the words are those of the undisturbed reply."""
    frozen = killed = scene.asker

    def freeze(reply: tools.Reply) -> None:
        nonlocal frozen
        frozen = scene.others_in(reply.planned)[0]
        frozen.freeze()

    def kill(reply: tools.Reply) -> None:
        nonlocal killed
        killed = next(node for node in scene.others_in(reply.planned) if node is not frozen)
        killed.kill()

    try:
        whole = scene.ask(freeze)
        assert whole.error is None
        assert frozen.peer_id not in scene.alive()
    finally:
        frozen.thaw()
    scene.until_alive(frozen)
    other = scene.ask(kill)
    assert other.error is None
    assert killed.peer_id not in scene.alive()
    killed.start("--log-format", "text")
    scene.until_alive(killed)
    tools.report("pause of a reply", f"stage frozen {whole.longest_pause:.2f} s, stage killed {other.longest_pause:.2f} s")
    for reply, victim in ((whole, frozen), (other, killed)):
        assert reply.replaced >= 1
        assert victim.peer_id not in {one["peer"] for one in reply.route}
        assert reply.text == scene.text
        scene.asker.event("peer_unroutable", 1.0, peer=victim.peer_id)
        assert reply.longest_pause <= tools.SLACK * DELAY


def test_no_fetch_waits_long_for_a_frozen_or_a_killed_peer(scene: Scene, tmp_path: Path) -> None:
    """From the moment it freezes or dies until nobody asks it any more; each holds a shard of every group."""
    quiet = min(scene.fetch(tmp_path / f"quiet{number}") for number in range(2))
    frozen, killed = scene.swarm.nodes[2], scene.swarm.nodes[3]
    frozen.freeze()
    scene.kill(killed)
    began = time.monotonic()
    slow: list[float] = []

    def unasked() -> bool:
        slow.append(scene.fetch(tmp_path / str(len(slow))))
        return not {frozen.peer_id, killed.peer_id} & scene.alive()

    try:
        wait_until(unasked, tools.SLACK * UNROUTABLE, "the frozen and the killed peer not shown as alive")
        tools.report("frozen and killed peers not asked any more", f"after {time.monotonic() - began:.1f} s")
        tools.report("a fetch", f"{quiet:.2f} s before, then {', '.join(f'{took:.2f}' for took in slow)} s")
    finally:
        frozen.thaw()
    killed.start("--log-format", "text")
    for node in (frozen, killed):
        scene.asker.event("peer_unroutable", 1.0, peer=node.peer_id)
        scene.until_alive(node)
    assert max(slow) - quiet <= tools.SLACK * DELAY


def test_too_few_holders_left_is_said_with_names(scene: Scene, tmp_path: Path) -> None:
    """The last test: all but k - 1 holders die."""
    for node in scene.swarm.nodes[: N - K + 1]:
        scene.kill(node)
    holders = {node.peer_id for node in scene.swarm.nodes[:N]}
    wait_until(lambda: len(scene.alive() & holders) == K - 1, 30.0, "the dead not shown as alive")
    survivor = scene.swarm.nodes[N - 1]
    with pytest.raises(CommandFailed) as caught:
        scene.fetch(tmp_path / "none")
    error = caught.value.error
    assert caught.value.code == 6
    assert error["code"] == "unavailable"
    assert error["details"]["missing"] == 1
    assert error["details"]["group"] in error["message"]
    assert error["details"]["asked"] == [survivor.peer_id]
    assert not (tmp_path / "none").exists()
    hello = {"model": scene.model_id, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    newcomer = scene.swarm.add("--join", survivor.ticket)
    status, _, body = newcomer.http("POST", "/v1/chat/completions", hello)
    told = json.loads(body)["error"]["message"]
    assert status == 503, told
    assert "missing" in told
    assert "group " in told
