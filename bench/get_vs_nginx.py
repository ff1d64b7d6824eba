"""Get of a 256 MiB model through six node processes (k 4, n 6, raw) by a seventh, to files, beside nginx -> curl to a file.

Same file system, same run, turn about; medians and their ratio. `python -m bench.get_vs_nginx [MIB] [ROUNDS]`.
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
from pathlib import Path

from tests.support.processes import Swarm

from bench.nginx import Nginx
from tests.support.synthetic import synthetic_llama

MIB = 1 << 20


def curl(url: str, to: Path) -> float:
    started = time.monotonic()
    subprocess.run(["curl", "-s", "-f", "-o", str(to), url], check=True)
    seconds = time.monotonic() - started
    to.unlink()
    return seconds


def fetch(node: object, model: str, to: Path) -> tuple[float, float]:
    """Wall seconds of the whole command, and the seconds the node itself took."""
    started = time.monotonic()
    result = node.cli("fetch", model, str(to))  # type: ignore[attr-defined]
    wall = time.monotonic() - started
    shutil.rmtree(to)
    return wall, result["seconds"]


def main(mebibytes: int, rounds: int) -> None:
    root = Path(tempfile.mkdtemp(prefix="mf-bench-", dir=os.environ.get("MF_BENCH_DIR")))
    try:
        folder = synthetic_llama(root / "model", mebibytes * MIB)
        weights = folder / "model.safetensors"
        with Swarm(6, root=root / "nodes", storage="4GB") as swarm, Nginx(folder) as nginx:
            published = swarm.nodes[0].cli("publish", str(folder), "--name", "synthetic", "--k", "4", "--n", "6", "--compression", "raw")
            seventh = swarm.add()
            model = published["model_id"]
            walls, inside, curls = [], [], []
            for round_number in range(rounds + 1):
                curled = curl(f"{nginx.url}/{weights.name}", root / "curled")
                wall, took = fetch(seventh, model, root / "fetched")
                if round_number:
                    walls.append(wall), inside.append(took), curls.append(curled)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    median = {"curl": statistics.median(curls), "fetch": statistics.median(inside), "command": statistics.median(walls)}
    print(
        json.dumps(
            {
                "bench": "get_vs_nginx",
                "mib": mebibytes,
                "rounds": rounds,
                "seconds": median,
                "ratio": median["curl"] / median["fetch"],
                "ratio_with_command_start": median["curl"] / median["command"],
                "publish_seconds": published["seconds"],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256, int(sys.argv[2]) if len(sys.argv) > 2 else 5)
