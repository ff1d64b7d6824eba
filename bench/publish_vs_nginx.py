"""Publish of a 256 MiB model until it is durable at six node processes (k 4, n 6, raw), beside six curls that put the same stored
bytes to nginx at once, then `sync`.

A fresh model each round, since shards that lie there already aren't sent again; dirty pages of before are synced away first; medians,
and the CPU seconds of each kind of process. `python -m bench.publish_vs_nginx [MIB] [ROUNDS] [HIDDEN]`.
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
from bench.get_vs_nginx import Cpu
from bench.nginx import Nginx
from tests.support.processes import Swarm
from tests.support.synthetic import synthetic_llama

MIB = 1 << 20
N = 6


def put_all(url: str, file: Path, served: Path) -> float:
    """Seconds until N copies of the file are at nginx and on the disk."""
    began = time.monotonic()
    lines = [["curl", "-s", "-f", "-T", str(file), "-o", "/dev/null", f"{url}/shard{number}"] for number in range(N)]
    running = [subprocess.Popen(line) for line in lines]
    if any(process.wait() for process in running):
        raise RuntimeError("nginx refused a PUT")
    subprocess.run(["sync"], check=True)
    seconds = time.monotonic() - began
    for put in served.iterdir():
        put.unlink()
    return seconds


def publish(swarm: Swarm, folder: Path) -> tuple[float, int, str]:
    """Seconds the node took, the bytes of one shard of everything, and the model."""
    shape = ["--k", "4", "--n", str(N), "--compression", "raw"]
    result = swarm.nodes[0].cli("publish", str(folder), "--name", "synthetic", *shape, timeout=300)
    assert result["durable"] == result["shards"], result
    return result["seconds"], result["stored_bytes"] // N, result["model_id"]


def measure(root: Path, mebibytes: int, rounds: int, hidden: int) -> dict[str, Any]:
    served = root / "served"
    served.mkdir()
    seconds: dict[str, list[float]] = defaultdict(list)
    spent: dict[str, list[float]] = defaultdict(list)
    with Swarm(root / "nodes", N, "--storage", "4GB") as swarm, Nginx(served, puts=True) as nginx:
        cpu = Cpu(swarm, swarm.nodes[0])
        for round_number in range(rounds + 1):
            folder = synthetic_llama(root / "model", mebibytes * MIB, seed=round_number, hidden=hidden)
            subprocess.run(["sync"], check=True)
            cpu.since()
            took, shard, model = publish(swarm, folder)
            used = cpu.since()
            for node in swarm.nodes:
                node.cli("forget", model)
            shutil.rmtree(folder)
            stored = root / "stored"
            stored.write_bytes(os.urandom(MIB) * (shard // MIB) + bytes(shard % MIB))
            subprocess.run(["sync"], check=True)
            put = put_all(nginx.url, stored, served)
            if round_number:  # the first is for imports and connections
                seconds["publish"].append(took)
                seconds["curl_put_sync"].append(put)
                for kind, used_seconds in used.items():
                    spent[kind].append(used_seconds)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "bench": "publish_vs_nginx", "mib": mebibytes, "rounds": rounds, "hidden": hidden, "stored_bytes": shard * N,
        "seconds": {name: round(took, 3) for name, took in medians.items()},
        "cpu_seconds": {kind: round(statistics.median(found), 2) for kind, found in spent.items()},
        "ratio": round(medians["curl_put_sync"] / medians["publish"], 3),
    }  # fmt: skip


def run(mebibytes: int = 256, rounds: int = 5, hidden: int = 1024) -> dict[str, Any]:
    root = Path(tempfile.mkdtemp(prefix="mf-bench-", dir=os.environ.get("MF_BENCH_DIR")))
    root.chmod(0o755)
    (root / "nodes").mkdir()
    try:
        return measure(root, mebibytes, rounds, hidden)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def bars(found: dict[str, Any]) -> list[Bar]:
    what = f"publish of {found['mib']} MiB until durable at {N} nodes, time of {N} curl PUTs to nginx and sync by its"
    return [Bar(what, "≥ 0.35", f"{found['ratio']:.2f}")]


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
