"""Get of a 256 MiB file through six node processes by a seventh, beside libtorrent with four seeders and Tahoe-LAFS 4 of 6.

Everything warm: swarm, seeders, downloader and grid stay up; turn about in the same run, to files on the same file system; medians.
`python -m bench.get_vs_peers [MIB] [ROUNDS] [HIDDEN]`. A peer that can't be installed here is left out, saying so.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.bars import Bar
from bench.environments import Missing
from bench.get_vs_nginx import curl, fetch, wait_for_holders
from bench.nginx import Nginx
from bench.tahoe import Tahoe
from bench.torrent import Torrent
from tests.support.processes import Swarm
from tests.support.synthetic import synthetic_llama

MIB = 1 << 20
Get = Callable[[Path], float]
"""Seconds until the file lies in a place that wasn't there before, a file or a folder."""


def node_get(stack: ExitStack, root: Path, folder: Path) -> Get:
    swarm = stack.enter_context(Swarm(root, 6, "--storage", "4GB"))
    shape = ["--k", "4", "--n", "6", "--compression", "raw"]
    model = swarm.nodes[0].cli("publish", str(folder), "--name", "synthetic", *shape, timeout=300)["model_id"]
    seventh = swarm.add("--join", swarm.nodes[-1].ticket)
    wait_for_holders(seventh, model, 6)
    return lambda to: fetch(seventh, model, to)[1]


def nginx_get(stack: ExitStack, _root: Path, folder: Path) -> Get:
    url = f"{stack.enter_context(Nginx(folder)).url}/model.safetensors"
    return lambda to: curl(url, to)


def torrent_get(stack: ExitStack, _root: Path, folder: Path) -> Get:
    return stack.enter_context(Torrent(folder / "model.safetensors", 4)).get


def tahoe_get(stack: ExitStack, root: Path, folder: Path) -> Get:
    grid = stack.enter_context(Tahoe(4, 6, root))
    capability = grid.put(folder / "model.safetensors")
    return lambda to: grid.get(capability, to)


WAYS = {"nodes": node_get, "nginx_curl": nginx_get, "libtorrent": torrent_get, "tahoe": tahoe_get}


def measure(root: Path, mebibytes: int, rounds: int, hidden: int) -> dict[str, Any]:
    folder = synthetic_llama(root / "model", mebibytes * MIB, hidden=hidden)
    left_out: dict[str, str] = {}
    seconds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        gets: dict[str, Get] = {}
        for name, way in WAYS.items():
            (root / name).mkdir()
            try:
                gets[name] = way(stack, root / name, folder)
            except Missing as missing:
                left_out[name] = str(missing)
        for round_number in range(rounds + 1):
            for name, get in gets.items():
                took = get(root / "got")
                _remove(root / "got")
                if round_number:  # the first is for the caches
                    seconds.setdefault(name, []).append(took)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "bench": "get_vs_peers", "mib": mebibytes, "rounds": rounds, "hidden": hidden, "left_out": left_out,
        "seconds": {name: round(took, 3) for name, took in medians.items()},
        "times_faster": {name: round(took / medians["nodes"], 2) for name, took in medians.items() if name != "nodes"},
    }  # fmt: skip


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)  # curl() has removed its own


def run(mebibytes: int = 256, rounds: int = 5, hidden: int = 1024) -> dict[str, Any]:
    root = Path(tempfile.mkdtemp(prefix="mf-bench-", dir=os.environ.get("MF_BENCH_DIR")))
    root.chmod(0o755)
    try:
        return measure(root, mebibytes, rounds, hidden)
    finally:
        shutil.rmtree(root, ignore_errors=True)


ASKED = {"libtorrent": "≥ 3 ×", "tahoe": "≥ 10 ×", "nginx_curl": ""}


def bars(found: dict[str, Any]) -> list[Bar]:
    what = f"get of {found['mib']} MiB from six nodes, by the time of"
    measured = {**{name: f"{times:.2f} ×" for name, times in found["times_faster"].items()}}
    left_out = {name: f"not run: {reason}" for name, reason in found["left_out"].items()}
    return [Bar(f"{what} {name}", ASKED.get(name, ""), text) for name, text in (measured | left_out).items()]


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
