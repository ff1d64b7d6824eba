"""Memory while a 4 GiB model is published to six node processes and fetched by a seventh: the peak of PSS.

PSS (`smaps_rollup`: own pages, and each shared page by its share) of the node, its transfer process and all their children together,
looked at every 50 ms. `python -m bench.memory [MIB]`; it needs 3.5 times as much disk.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.bars import Bar
from bench.cpu import children
from bench.get_vs_nginx import fetch, wait_for_holders
from tests.support.processes import Swarm
from tests.support.synthetic import synthetic_llama

MIB = 1 << 20
EVERY = 0.05


def pss(pid: int) -> dict[str, int]:
    """Bytes by kind ("Pss", "Pss_Anon", "Pss_File", "Pss_Shmem"); nothing for a process that has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return {}
    lines = (line.split() for line in text.splitlines()[1:])
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[0].startswith("Pss")}


class Peak:
    """The highest sum over a process and what it started, while entered, and what it was made of then.

    A look holds up whoever asks the kernel for memory meanwhile: a gigabyte looked at 20 times a second takes a process half its pace.
    """

    def __init__(self, pid: int, every: float = EVERY) -> None:
        self._pid, self._every = pid, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.looks = 0
        self.bytes = 0
        self.processes: list[dict[str, int]] = []

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(self._every):
            found = [sizes for pid in (self._pid, *children(self._pid)) if (sizes := pss(pid))]
            total = sum(sizes["Pss"] for sizes in found)
            self.looks += 1
            if total > self.bytes:
                self.bytes, self.processes = total, found

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def result(self) -> dict[str, Any]:
        parts = [{kind: round(size / MIB) for kind, size in sizes.items()} for sizes in self.processes]
        return {"peak_mib": round(self.bytes / MIB), "looks": self.looks, "processes_mib": parts}


def measure(root: Path, mebibytes: int) -> dict[str, Any]:
    folder = synthetic_llama(root / "model", mebibytes * MIB)
    with Swarm(root / "nodes", 6, "--storage", f"{max(4, mebibytes >> 9)}GB") as swarm:
        publisher = swarm.nodes[0]
        shape = ["--k", "4", "--n", "6", "--compression", "raw"]
        with Peak(publisher.pid) as publishing:
            published = publisher.cli("publish", str(folder), "--name", "synthetic", *shape, timeout=900)
        seventh = swarm.add("--join", swarm.nodes[-1].ticket)
        wait_for_holders(seventh, published["model_id"], 6)
        with Peak(seventh.pid) as fetching:
            seconds = fetch(seventh, published["model_id"], root / "fetched")[1]
    return {
        "bench": "memory", "mib": mebibytes, "publisher": publishing.result(), "fetcher": fetching.result(),
        "seconds": {"publish": published["seconds"], "fetch": seconds},
    }  # fmt: skip


def run(mebibytes: int = 4096) -> dict[str, Any]:
    root = Path(tempfile.mkdtemp(prefix="mf-bench-", dir=os.environ.get("MF_BENCH_DIR")))
    (root / "nodes").mkdir()
    try:
        return measure(root, mebibytes)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def bars(found: dict[str, Any]) -> list[Bar]:
    what = f"peak PSS of node and transfer process, {found['mib']} MiB"
    sides = {"published": "publisher", "fetched": "fetcher"}
    return [Bar(f"{what} {done}", "≤ 512 MiB", f"{found[side]['peak_mib']} MiB") for done, side in sides.items()]


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:])), indent=2))
