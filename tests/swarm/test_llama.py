"""Nodes on llama.cpp: one with the whole model answers over HTTP, a pipeline of three gives the same text and goes on with it when a
stage's worker is killed in the middle. The whole model runs so in bf16 as well."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.processes import Node, Swarm
from tests.support.synthetic import tiny_llama
from tests.swarm import tools

pytestmark = pytest.mark.swarm

PROMPT, TOKENS, PRECISION = "abc defg hij klm", 48, "q8_0"


@dataclass
class Nodes:
    """`whole` has room for all of the model and lends none; `small` has it for two layers of six, as two others that lend."""

    swarm: Swarm
    whole: Node
    small: Node
    model: str

    def engines(self, precision: str) -> set[str]:
        """What stages of this precision run on, at any node."""
        found = [label for node in self.swarm.nodes for label in tools.metric(node, "mf_stages_by_engine")]
        return {label.partition('engine="')[2].partition('"')[0] for label in found if f'precision="{precision}"' in label}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    root = tmp_path_factory.mktemp("llama")
    model = tiny_llama(root / "model", layers=6, inner=2_048)
    memory = tools.memory_for_stages(model, 2, 4 * TOKENS, PRECISION)
    options = ("--engine", "llama", "--precision", PRECISION)
    with Swarm(root, 3, "--lend", "both", "--max-memory", memory, *options) as swarm:
        whole = Node(root / "whole", "--lend", "storage", *options, "--join", swarm.nodes[0].ticket).start()
        swarm.nodes.append(whole)
        swarm.wait_met()
        told = whole.cli("publish", str(model), "--name", "tiny", "--k", "2", "--n", "4")
        yield Nodes(swarm, whole, swarm.nodes[0], told["name"])


def over_http(node: Node, model: str) -> tuple[str, str, list[tuple[str, int, int]]]:
    """Text, fingerprint and stages of a greedy reply."""
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": TOKENS, "temperature": 0}
    with tools.ChatStream(node, model, PROMPT, TOKENS) as chat:
        stages, text = tools.stages_of(chat.planned), chat.rest()
    reply = node.post("/v1/chat/completions", body)
    assert reply["choices"][0]["message"]["content"] == text
    return text, reply["system_fingerprint"], stages


def test_whole_and_as_a_pipeline_of_three_they_answer_alike(nodes: Nodes) -> None:
    explained = nodes.whole.cli("explain", nodes.model, "--precision", PRECISION)
    assert explained["engine"] == {"name": "llama", "why": "--engine llama"}
    text, fingerprint, stages = over_http(nodes.whole, nodes.model)
    assert len(text) > TOKENS / 2
    assert len(stages) <= 1
    assert fingerprint.endswith("-llama-q8_0")
    cut, fingerprint, stages = over_http(nodes.small, nodes.model)
    assert len(stages) == 3
    assert cut == text
    assert fingerprint.endswith("-q8_0")
    assert nodes.engines(PRECISION) == {"llama"}


def test_a_reply_goes_on_when_a_worker_is_killed(nodes: Nodes) -> None:
    text = tools.ask(nodes.whole, nodes.model, PROMPT, TOKENS, precision=PRECISION).text

    def kill(reply: tools.Reply) -> None:
        lost = next(node for node in nodes.swarm.nodes if node.peer_id == reply.planned[1]["peer"])
        pid = tools.process_of(lost, tools.WORKER)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    reply = tools.ask(nodes.small, nodes.model, PROMPT, TOKENS, precision=PRECISION, meanwhile=kill)
    assert reply.error is None
    assert reply.replaced >= 1
    assert reply.text == text


def test_bf16_runs_by_llama_too(nodes: Nodes) -> None:
    whole = tools.ask(nodes.whole, nodes.model, PROMPT, 8, precision="bf16")
    assert whole.error is None
    assert whole.text
    assert "llama" in nodes.engines("bf16")
