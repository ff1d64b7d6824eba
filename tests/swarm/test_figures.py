"""What real nodes measure of themselves: bytes that a request moved, memory that a model took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Node, Swarm
from tests.support.synthetic import tiny_llama
from tests.support.wait import wait_until
from tests.swarm import tools
from tests.swarm.api import data

pytestmark = pytest.mark.swarm
ROOM = 256


def compared(node: Node, model: str) -> list[dict[str, Any]]:
    asked = {"models": [model, model], "input": {"text": "one two three", "max_tokens": 12}}
    found: list[dict[str, Any]] = data(node, "POST", "/api/v1/inference/compare", asked)["results"]
    assert [one["status"] for one in found] == ["success", "success"], found
    return found


def test_bytes_of_pipelines_and_of_fetched_weights_and_the_memory_a_model_took(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    weights = (model / "model.safetensors").stat().st_size
    memory = tools.memory_for_stages(model, 2, ROOM)
    with Swarm(tmp_path, 3, "--lend", "both", "--max-memory", memory, "--precision", "fp32") as swarm:
        entry = swarm.nodes[0]
        told = entry.cli("publish", str(model), "--name", "tiny")
        piped = compared(entry, told["name"])
        for one in piped:
            assert one["compute_provider"]["kind"] == "pipeline"
            assert one["measured_by"] == entry.peer_id
            assert min(one["network_bytes_sent"], one["network_bytes_received"]) > 12 * 4  # a token each way at least
            assert one["network_bytes"] == one["network_bytes_sent"] + one["network_bytes_received"]
            elsewhere = {stage["peer"] for stage in one["compute_provider"]["route"]} - {entry.peer_id}
            assert {told["peer"] for told in one["network_bytes_of_stages"] or []} <= elsewhere
        assert data(entry, "GET", f"/api/v1/models/{told['model_id']}")["performance_metrics"]["memory_usage_gb"] is None
        whole = swarm.add("--join", entry.cli("ticket")["ticket"], "--lend", "none", "--max-memory", "500MB")
        wait_until(lambda: len(whole.cli("models")["models"]) == 1, 30.0, "the model to be known")
        first, second = compared(whole, told["model_id"])
        tools.report(
            "compared", f"pipeline {piped[1]['network_bytes']} B, fetched {first['network_bytes']} B, again {second['network_bytes']} B"
        )
        assert first["network_bytes_received"] > weights / 2 > second["network_bytes"]
        figures = data(whole, "GET", f"/api/v1/models/{told['model_id']}")["performance_metrics"]
        assert (figures["samples"], figures["measured_by"]) == (2, whole.peer_id)
        assert figures["tokens_per_second"] > 0 < figures["avg_inference_time_ms"]
        assert 0 < figures["memory_usage_gb"] < 1
