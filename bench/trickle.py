"""Get of a model through node processes (k 4, n 6) while one of the holders trickles 50 kB/s, beside the same get without.

The holder is quick until then: the reader is restarted each round, gets the model once from all (this warms it and teaches it
that the holder is as fast as the others), then once more as it is, then with the trickle. So it is surprised each time,
and the holder is among those whom it asks for most groups. `python -m bench.trickle [MIB] [ROUNDS] [HIDDEN]`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.bars import Bar
from bench.get_vs_nginx import fetch, wait_for_holders
from tests.support.processes import Node, Swarm
from tests.support.synthetic import synthetic_llama

MIB = 1 << 20
K, N = 4, 6


def hedges(node: Node) -> int:
    """How often the reader has asked for a spare."""
    return node.log.read_text(errors="replace").count('"hedged"')


def measure(root: Path, mebibytes: int, rounds: int, hidden: int) -> dict[str, Any]:
    folder = synthetic_llama(root / "model", mebibytes * MIB, hidden=hidden)
    switch = root / "trickle"
    plain: list[float] = []
    trickled: list[float] = []
    spares: dict[str, list[int]] = {"without": [], "with": []}
    with Swarm(root / "nodes", N - 1, "--storage", "4GB") as swarm:
        slow = Node(root / "nodes" / "slow", "--storage", "4GB", "--join", swarm.nodes[0].ticket, env={"BENCH_TRICKLE": str(switch)},
                    module="bench.trickling_node")  # fmt: skip
        swarm.nodes.append(slow)
        slow.start()
        swarm.wait_met()
        shape = ["--k", str(K), "--n", str(N), "--compression", "raw"]
        model = swarm.nodes[0].cli("publish", str(folder), "--name", "synthetic", *shape, timeout=300)["model_id"]
        reader = swarm.add("--join", swarm.nodes[0].ticket)
        for round_number in range(rounds):
            if round_number:
                reader.stop()
                reader.start()
            wait_for_holders(reader, model, N)
            fetch(reader, model, root / "fetched")
            counts = [hedges(reader)]
            plain.append(fetch(reader, model, root / "fetched")[1])
            counts.append(hedges(reader))
            switch.touch()
            trickled.append(fetch(reader, model, root / "fetched")[1])
            switch.unlink()
            counts.append(hedges(reader))
            for name, before, after in zip(spares, counts, counts[1:], strict=False):
                spares[name].append(after - before)
    return {
        "bench": "trickle", "mib": mebibytes, "rounds": rounds, "hidden": hidden, "k": K, "n": N,
        "seconds": {"without": round(statistics.median(plain), 3), "with": round(statistics.median(trickled), 3)},
        "all": {"without": plain, "with": trickled}, "spares": spares,
        "times": round(statistics.median(trickled) / statistics.median(plain), 3),
    }  # fmt: skip


def run(mebibytes: int = 256, rounds: int = 5, hidden: int = 1024) -> dict[str, Any]:
    root = Path(tempfile.mkdtemp(prefix="mf-bench-", dir=os.environ.get("MF_BENCH_DIR")))
    (root / "nodes").mkdir()
    try:
        return measure(root, mebibytes, rounds, hidden)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def bars(found: dict[str, Any]) -> list[Bar]:
    what = f"get of {found['mib']} MiB, one of k holders trickling 50 kB/s, by the time without"
    return [Bar(what, "≤ 1.15 ×", f"{found['times']:.2f} ×")]


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
