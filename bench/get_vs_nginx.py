"""Get of a 256 MiB model through six node processes (k 4, n 6, raw) by a seventh, to files, beside nginx -> curl to a file.

Same file system, same run, turn about; medians, their ratio, and the CPU seconds that each kind of process spent on one get: where cores
are few, these decide the ratio and drift less than the clock. `python -m bench.get_vs_nginx [MIB] [ROUNDS] [LOST] [HIDDEN]`,
LOST data shards' holders being stopped first; layers of HIDDEN 1024 have 25 MiB, of 512 6 MiB.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.bars import Bar
from bench.cpu import children, cpu_seconds
from bench.nginx import Nginx
from tests.support.processes import Node, Swarm
from tests.support.synthetic import synthetic_llama
from tests.support.wait import wait_until

MIB = 1 << 20


def curl(url: str, to: Path) -> float:
    started = time.monotonic()
    subprocess.run(["curl", "-s", "-f", "-o", str(to), url], check=True)
    seconds = time.monotonic() - started
    to.unlink()
    return seconds


class Cpu:
    """CPU seconds by kind of process since the last look: the fetching node, the transfer and decoding processes of it, the others."""

    def __init__(self, swarm: Swarm, client: Node) -> None:
        self._nodes = [("client" if node is client else "servers", node.pid) for node in swarm.living()]
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        total: dict[str, float] = defaultdict(float)
        for kind, node in self._nodes:
            total[f"{kind} node"] += cpu_seconds(node)
            # Asked anew each time: a decoding process is started by the first read.
            total[f"{kind} transfer"] += sum(map(cpu_seconds, children(node)))
        return total

    def since(self) -> dict[str, float]:
        before, self._before = self._before, self._now()
        return {kind: seconds - before[kind] for kind, seconds in self._before.items()}


def fetch(node: Node, model: str, to: Path) -> tuple[float, float]:
    """Wall seconds of the whole command, and the seconds the node itself took."""
    started = time.monotonic()
    result = node.cli("fetch", model, str(to), timeout=300)
    wall = time.monotonic() - started
    shutil.rmtree(to)
    return wall, result["seconds"]


def measure(root: Path, mebibytes: int, rounds: int, lost: int, hidden: int) -> dict[str, Any]:
    folder = synthetic_llama(root / "model", mebibytes * MIB, hidden=hidden)
    walls: list[float] = []
    inside: list[float] = []
    curls: list[float] = []
    spent: dict[str, list[float]] = defaultdict(list)
    with Swarm(root / "nodes", 6, "--storage", "4GB") as swarm, Nginx(folder) as nginx:
        published = swarm.nodes[0].cli(
            "publish", str(folder), "--name", "synthetic", "--k", "4", "--n", "6", "--compression", "raw", timeout=300
        )
        seventh = swarm.add("--join", swarm.nodes[-1].ticket)
        wait_for_holders(seventh, published["model_id"], 6)
        for node in swarm.nodes[:lost]:
            node.kill()
        cpu = Cpu(swarm, seventh)
        for round_number in range(rounds + 1):
            curled = curl(f"{nginx.url}/model.safetensors", root / "curled")
            cpu.since()
            wall, took = fetch(seventh, published["model_id"], root / "fetched")
            # The first is for the caches.
            if round_number:
                for found, seconds in ((walls, wall), (inside, took), (curls, curled)):
                    found.append(seconds)
                for kind, seconds in cpu.since().items():
                    spent[kind].append(seconds)
    return {
        "bench": "get_vs_nginx",
        "mib": mebibytes,
        "rounds": rounds,
        "holders_lost": lost,
        "hidden": hidden,
        "seconds": {name: round(statistics.median(found), 3) for name, found in (("curl", curls), ("fetch", inside), ("command", walls))},
        "cpu_seconds": {kind: round(statistics.median(found), 2) for kind, found in spent.items()},
        "ratio": round(statistics.median(curls) / statistics.median(inside), 3),
        "ratio_with_command_start": round(statistics.median(curls) / statistics.median(walls), 3),
        "publish_seconds": published["seconds"],
    }


def wait_for_holders(node: Node, model: str, holders: int) -> None:
    def known() -> bool:
        return any(entry["model_id"] == model and entry["holders"] >= holders for entry in node.cli("models")["models"])

    wait_until(known, 30, "the seventh node knows the model's holders")


def run(mebibytes: int = 256, rounds: int = 5, lost: int = 0, hidden: int = 1024) -> dict[str, Any]:
    root = Path(tempfile.mkdtemp(prefix="mf-bench-", dir=os.environ.get("MF_BENCH_DIR")))
    # nginx's workers read from here too.
    root.chmod(0o755)
    (root / "nodes").mkdir()
    try:
        return measure(root, mebibytes, rounds, lost, hidden)
    finally:
        shutil.rmtree(root, ignore_errors=True)


ASKED = {0: "≥ 0.80", 2: "≥ 0.60"}


def bars(found: dict[str, Any]) -> list[Bar]:
    lost = f", {found['holders_lost']} data shards lost" if found["holders_lost"] else ""
    what = f"get of {found['mib']} MiB from six nodes by a seventh (layers of hidden {found['hidden']}{lost}), nginx -> curl's time by its"
    spent = ", ".join(f"{kind} {seconds:.2f}" for kind, seconds in found["cpu_seconds"].items())
    return [Bar(what, ASKED.get(found["holders_lost"], ""), f"{found['ratio']:.2f}"), Bar("its CPU seconds", "", spent)]


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
