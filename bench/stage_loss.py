"""How long a reply pauses when a stage is lost at 512 tokens: SmolLM2-135M in two stages, a third node standing by.

The last stage's node, or its worker alone, is killed or stopped in the middle of a reply; the figure is the longest wait between two
pieces of text. `python -m bench.stage_loss`.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

from bench.stage_swarm import StageSwarm
from bootstrap.demo_model import demo_model
from tests.support.processes import Node
from tests.support.wait import wait_until
from tests.swarm import tools

_PROMPT = "the cat sat on the mat and " * 65
"""Some 470 tokens."""
_BEFORE, _TOKENS = 40, 70


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


def lose(swarm: StageSwarm, how: str) -> dict[str, Any]:
    """One reply with a loss in its middle; the lost node is back, or dead, afterwards."""
    swarm.ask(_PROMPT, _BEFORE)  # whoever stands by gets ready
    lost: list[Node] = []

    def meanwhile(reply: tools.Reply) -> None:
        lost.append(next(node for node in swarm.nodes if node.peer_id == reply.planned[-1]["peer"]))
        harm(how, lost[0])

    reply = swarm.ask(_PROMPT, _TOKENS, meanwhile=meanwhile, after=_BEFORE)
    if how == "node stopped":
        lost[0].thaw()
    if how != "node killed":
        wait_until(lambda: all_alive(swarm), 20.0, "the lost stage's node to be back")
    return {"pause_s": round(reply.longest_pause, 2), "replaced": reply.replaced}


def all_alive(swarm: StageSwarm) -> bool:
    alive = {peer["peer_id"] for peer in swarm.nodes[0].cli("status")["peers"] if peer["alive"]}
    return {node.peer_id for node in swarm.nodes[1:]} <= alive


def run() -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="stage-loss-") as place,
        StageSwarm(Path(place), demo_model(), 2, 700, nodes=3, module="node") as swarm,
    ):
        swarm.ask(_PROMPT, _BEFORE)
        return {how: lose(swarm, how) for how in ("worker killed", "worker stopped", "node stopped", "node killed")}


if __name__ == "__main__":
    print(json.dumps(run()), flush=True)
