"""One idle node as its owner sees it: quickly ready, small, quiet, and gone without a trace when told to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Node, Swarm
from tests.support.synthetic import tiny_llama
from tests.support.wait import wait_until
from tests.swarm import tools

pytestmark = pytest.mark.swarm

READY, STOPPED = 5.0, 5.0
IDLE_MEMORY = 200 * 1024 * 1024
IDLE_CORE = 0.02
WATCHED = 8.0


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """Three nodes with a tiny model among them."""
    folder = tmp_path_factory.mktemp("run")
    with Swarm(folder, 3, "--lend", "both") as swarm:
        swarm.nodes[0].cli("publish", str(tiny_llama(folder / "model")), "--name", "tiny")
        for node in swarm.nodes:
            wait_until(lambda node=node: node.cli("models", "tiny")["models"] != [], 10.0, "every node knows the model")  # type: ignore[misc]
        yield swarm


def ticks(nodes: list[Node]) -> list[int]:
    return [sum(tools.cpu_ticks(pid) for pid in (node.pid, *tools.descendants(node.pid))) for node in nodes]


def ask(node: Node) -> None:
    hello = {"role": "user", "content": "hi"}
    node.post("/v1/chat/completions", {"model": "tiny", "messages": [hello], "max_tokens": 2, "temperature": 0})


def test_an_idle_node_is_small_and_quiet_and_knows_no_torch(trio: Swarm) -> None:
    before, began = ticks(trio.nodes), time.monotonic()
    sizes = []
    for node in trio.nodes:
        transfer = tools.process_of(node, tools.TRANSFER)
        assert transfer is not None
        assert tools.process_of(node, tools.WORKER) is None, "the worker runs though nobody asked"
        for pid in (node.pid, transfer):
            assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
        sizes.append(tools.pss(node.pid) + tools.pss(transfer))
    wait_until(lambda: time.monotonic() - began >= WATCHED, WATCHED + 1, "the time watched to pass")
    seconds = time.monotonic() - began
    shares = [(after - first) / os.sysconf("SC_CLK_TCK") / seconds for first, after in zip(before, ticks(trio.nodes), strict=True)]
    tools.report("idle PSS of node and transfer process", ", ".join(f"{size / 2**20:.0f} MiB" for size in sizes))
    tools.report("idle CPU of a core", ", ".join(f"{100 * share:.1f} %" for share in shares))
    assert max(sizes) <= IDLE_MEMORY
    assert max(shares) <= tools.SLACK * IDLE_CORE


def test_the_worker_starts_with_the_first_request_and_the_node_stays_without_torch(trio: Swarm) -> None:
    node = trio.nodes[1]
    assert tools.process_of(node, tools.WORKER) is None
    ask(node)
    worker = tools.process_of(node, tools.WORKER)
    assert worker is not None
    assert "libtorch" in Path(f"/proc/{worker}/maps").read_text()
    assert "libtorch" not in Path(f"/proc/{node.pid}/maps").read_text()
    started = node.event("worker_started", 1.0)
    tools.report("start of the worker", f"{started['seconds']:.1f} s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_node_and_all_it_started(trio: Swarm, number: signal.Signals) -> None:
    """Both with a worker running."""
    node = trio.nodes[1 if number is signal.SIGTERM else 2]
    if tools.process_of(node, tools.WORKER) is None:
        ask(node)
    children = tools.descendants(node.pid)
    assert children
    began = time.monotonic()
    code = node.end_by(number)
    took = time.monotonic() - began
    tools.report(f"{number.name} to gone", f"{took:.2f} s")
    assert took <= tools.SLACK * STOPPED
    assert code == 0
    wait_until(lambda: not any(tools.running(pid) for pid in children), 1.0, "the node's children are gone too")
    node.event("stopped", 1.0)


def test_a_node_is_ready_soon(tmp_path: Path) -> None:
    node = Node(tmp_path / "alone")
    began = time.monotonic()
    try:
        node.start()
        took = time.monotonic() - began
    finally:
        node.kill()
    tools.report("run to ready", f"{took:.2f} s")
    assert took <= tools.SLACK * READY
