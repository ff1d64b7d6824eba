"""The main job with the real demo model: six nodes store it, n - k of them die, the publisher among them, and a node that held nothing
has the files bit for bit and answers as transformers does, first whole, then as a pipeline of three stages."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bootstrap.demo_model import demo_model
from tests.support.processes import Node, Swarm
from tests.support.wait import wait_until
from tests.swarm import reference, tools

pytestmark = pytest.mark.swarm

K, N = 2, 6
TOKENS = 64
PROMPTS = [
    "Name the capital of France.",
    "Write a short poem about the sea.",
    "Explain to a child why the sky is blue.",
]
SMALL_MEMORY = "150MB"


@dataclass
class Job:
    """`texts` are what transformers says to PROMPTS; `told` what publish said; `dead` the nodes killed, the publisher first."""

    swarm: Swarm
    newcomer: Node
    folder: Path
    told: dict[str, Any]
    status: dict[str, Any]
    holders: list[dict[str, Any]]
    texts: list[str]

    def answer(self, prompt: str) -> tuple[str, dict[str, Any]]:
        with tools.ChatStream(self.newcomer, self.told["name"], prompt, TOKENS) as chat:
            return chat.rest(), chat.trace


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    folder, root = demo_model(), tmp_path_factory.mktemp("main")
    wanted = reference.start(folder, os.cpu_count() or 1, TOKENS, PROMPTS)
    try:
        with Swarm(root, N, "--lend", "both") as swarm:
            told = swarm.nodes[0].cli("publish", str(folder), "--name", "smollm2", timeout=240.0)
            tools.report("publish", f"{told['bytes'] / 1e6:.0f} MB in {told['seconds']} s")
            survivor = swarm.nodes[N - 1]
            wait_until(lambda: survives(survivor, told["model_id"]) == N - K, 90.0, "the survivor to see what is held")
            status = survivor.cli("status")
            holders = tools.holders_of(survivor, told["model_id"])
            for node in swarm.nodes[: N - K]:
                node.kill()
            newcomer = swarm.add("--join", survivor.cli("ticket")["ticket"])
            yield Job(swarm, newcomer, folder, told, status, holders, reference.texts(wanted, 240.0))
    finally:
        wanted.kill()
        wanted.wait()


def timings(trace: dict[str, Any]) -> str:
    return ", ".join(f"{name} {trace['timings_ms'][name] / 1000:.2f} s" for name in ("plan", "first_token", "total"))


def survives(node: Node, model: str) -> int | None:
    lines = [line for line in node.cli("status")["models"] if line["model_id"] == model]
    return lines[0]["survives_losses"] if lines else None


def test_six_nodes_hold_one_shard_of_each_group(job: Job) -> None:
    assert (job.told["durable"], job.told["shards"]) == (N * job.told["groups"], N * job.told["groups"])
    assert job.told["survives_losses"] == N - K
    (line,) = [line for line in job.status["models"] if line["model_id"] == job.told["model_id"]]
    assert (line["survives_losses"], line["holders"]) == (N - K, N)
    assert len(job.holders) == job.told["groups"]
    for group in job.holders:
        assert (group["k"], group["n"]) == (K, N)
        assert Counter(peer for peers in group["shards"].values() for peer in peers) == {node.peer_id: 1 for node in job.swarm.nodes[:N]}


def test_a_newcomer_fetches_the_files_bit_for_bit(job: Job, tmp_path: Path) -> None:
    assert job.newcomer.cli("holdings")["holdings"] == []
    told = job.newcomer.cli("fetch", job.told["name"], str(tmp_path / "files"), timeout=120.0)
    tools.report("fetch", f"{told['bytes'] / 1e6:.0f} MB in {told['seconds']} s")
    assert tools.digests(tmp_path / "files") == tools.digests(job.folder)


def test_whole_at_the_newcomer_it_says_what_transformers_says(job: Job) -> None:
    for prompt, wanted in zip(PROMPTS, job.texts, strict=True):
        text, trace = job.answer(prompt)
        assert text == wanted or reference.agrees(job.folder, prompt, text, TOKENS)
        assert [(one["peer"], one["first"]) for one in trace["route"]] == [(job.newcomer.peer_id, 0)]
        tools.report(
            "whole", f"first token {trace['timings_ms']['first_token'] / 1000:.2f} s, all {trace['timings_ms']['total'] / 1000:.2f} s"
        )


def test_through_three_stages_it_says_the_same(job: Job) -> None:
    """All that live start again with so little memory that none holds the model."""
    living = job.swarm.living()
    for node in living:
        assert node.stop() == 0
    began = time.monotonic()
    first, *others = living
    first.start("--max-memory", SMALL_MEMORY)
    for node in others:
        node.launch("--max-memory", SMALL_MEMORY, "--join", first.ticket)  # with port 0 nobody is where it was
    for node in others:
        node.wait_ready()
    job.swarm.wait_met()
    tools.report("restart", f"{len(living)} nodes met again after {time.monotonic() - began:.1f} s")
    for prompt, wanted in zip(PROMPTS, job.texts, strict=True):
        text, trace = job.answer(prompt)
        route = trace["route"]
        assert len(route) >= 3
        assert len({one["peer"] for one in route}) == len(route)
        assert [route[0]["first"], *(one["end"] for one in route)] == [*(one["first"] for one in route), 30]
        assert text == wanted or reference.agrees(job.folder, prompt, text, TOKENS)
        tools.report(
            "three stages", f"first {trace['timings_ms']['first_token'] / 1000:.2f} s, all {trace['timings_ms']['total'] / 1000:.2f} s"
        )
