"""How long a reply pauses when a stage is lost at 512 tokens: SmolLM2-135M in three stages, three nodes standing by.

The node of the first, the middle or the last stage, or its worker alone, is killed or stopped in the middle of a reply, which is asked at
a node that lends nothing, while another node has each stage loaded; nothing is guessed ahead, since the end would come before the loss;
the figure is the longest wait between two pieces of text.
`python -m bench.stage_loss [SAMPLES [FIRST [END]]]`: of the ways in `HOW` those from FIRST to END.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from bench.bars import Bar
from bench.stage_swarm import StageSwarm
from bootstrap.demo_model import demo_model
from tests.support.processes import Node
from tests.support.wait import wait_until
from tests.swarm import tools

_PROMPT = "the cat sat on the mat and " * 65
"""Some 470 tokens."""
_BEFORE, _TOKENS = 40, 70
ASKED, STOPPED = 3, 5
"""Seconds; where a process is stopped, nobody hears of it."""
STAGES = ("first", "middle", "last")
HOW = ("worker killed", "worker stopped", "node stopped", "node killed")


def harm(how: str, node: Node) -> None:
    worker = tools.process_of(node, tools.WORKER)
    assert worker is not None
    if how == "worker killed":
        os.kill(worker, signal.SIGKILL)
    elif how == "worker stopped":
        os.kill(worker, signal.SIGSTOP)
    elif how == "node stopped":
        node.freeze()
    else:
        node.kill()


def stood_by(swarm: StageSwarm) -> bool:
    """Whether every stage is loaded at two nodes."""
    labels = [label for node in swarm.nodes[1:] for label in tools.metric(node, "mf_stage_passes")]
    found = Counter(re.findall(r'layers="([^"]+)"', " ".join(labels)))
    return len(found) >= swarm.stages and sorted(found.values())[-swarm.stages :][0] > 1


def get_ready(swarm: StageSwarm) -> None:
    """Whoever stands by is told so by replies."""
    for _ in range(5):
        swarm.ask(_PROMPT, _BEFORE)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: stood_by(swarm), 15.0, "a stand-by for each stage")
            return
    raise RuntimeError("no stand-by for each stage")


def lose(swarm: StageSwarm, stage: int, how: str) -> tools.Reply:
    """One reply with a loss in its middle; the lost node is back afterwards."""
    get_ready(swarm)
    lost: list[Node] = []

    def meanwhile(reply: tools.Reply) -> None:
        lost.append(next(node for node in swarm.nodes if node.peer_id == reply.planned[stage]["peer"]))
        harm(how, lost[0])

    reply = swarm.ask(_PROMPT, _TOKENS, meanwhile=meanwhile, after=_BEFORE)
    if how == "node stopped":
        lost[0].thaw()
    elif how == "node killed":
        lost[0].start()
    wait_until(lambda: all_alive(swarm), 60.0, "the lost stage's node to be back")
    if not reply.replaced:
        raise RuntimeError(f"{how}: no stage was replaced")
    return reply


def all_alive(swarm: StageSwarm) -> bool:
    alive = {peer["peer_id"] for peer in swarm.nodes[0].cli("status")["peers"] if peer["alive"]}
    return {node.peer_id for node in swarm.nodes[1:]} <= alive


def run(samples: int = 3, first: int = 0, end: int = len(HOW)) -> dict[str, Any]:
    found: dict[str, Any] = {"bench": "stage_loss", "samples": samples, "pause_s": {}}
    with (
        tempfile.TemporaryDirectory(prefix="stage-loss-") as place,
        StageSwarm(Path(place), demo_model(), 3, 700, nodes=7, entry_lends=False) as swarm,
    ):
        for how in HOW[first:end]:
            for at, stage in enumerate(STAGES):
                pauses = [lose(swarm, at, how).longest_pause for _ in range(samples)]
                found["pause_s"][f"{stage} {how}"] = [round(statistics.median(pauses), 2), round(max(pauses), 2)]
                print(f"  {stage} {how}: {[round(pause, 2) for pause in pauses]}", flush=True)
    return found


def bars(found: dict[str, Any]) -> list[Bar]:
    return [
        Bar(
            f"pause at 512 tokens, {what}: median, most of {found['samples']}",
            f"≤ {ASKED if 'killed' in what else STOPPED} s",
            f"{median} s, {most} s",
        )
        for what, (median, most) in found["pause_s"].items()
    ]


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:]))), flush=True)
