"""Gauges of stages: what the worker told last, by stages that are loaded, and no peer among the labels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from node.http.metrics import Metrics
from node.loaded_stage import LoadedStage
from node.node_metrics import register_gauges
from runtime.interface import StageUsage, Usage


def page(stages: list[LoadedStage], usage: Usage | None) -> str:
    metrics = Metrics()
    room: Any = SimpleNamespace(loaded=lambda: stages, free=lambda: 0, line=[], engine_usage=lambda: usage)
    swarm: Any = SimpleNamespace(peers=lambda: [], blamed=lambda: [])
    counts = SimpleNamespace(repairs=0, failed=0, shards=0, read=0, written=0, alarms=0)
    repairs: Any = SimpleNamespace(groups=[], counts=counts)
    register_gauges(metrics, swarm, room, repairs)
    metrics.step("own", "compute", 0.003)
    metrics.step("route", "network", 0.001)
    return metrics.page().decode()


def usage(*stages: StageUsage) -> Usage:
    return Usage(weights=0, kv=0, activations=0, base=0, sequences=0, stages=list(stages))


def test_keys_values_and_queue_by_stage() -> None:
    stage = LoadedStage("key", 10, model="mfm1x", precision="bf16", first=3, end=9)
    told = StageUsage(stage="key", kv=700, left=300, sequences=2, waiting=1, passes=8, seconds=0.5, rows=12, reused=40)
    lines = page([stage], usage(told, StageUsage(stage="let go meanwhile", kv=1))).splitlines()
    labels = 'engine="torch",layers="3-9",model="mfm1x"'
    for line in (
        f'mf_stage_kv_bytes{{{labels},of="running",precision="bf16"}} 700.0',
        f'mf_stage_kv_bytes{{{labels},of="left",precision="bf16"}} 300.0',
        f'mf_stage_waiting{{{labels},precision="bf16"}} 1.0',
        f'mf_stage_sequences{{{labels},precision="bf16"}} 2.0',
        f'mf_stage_pass_seconds{{{labels},precision="bf16"}} 0.5',
        f'mf_stage_reused_tokens{{{labels},precision="bf16"}} 40.0',
    ):
        assert line in lines
    assert not any("let go" in line for line in lines)


def test_nothing_of_stages_while_the_worker_does_not_run() -> None:
    text = page([LoadedStage("key", 10)], None)
    assert "mf_stage_kv_bytes" not in text
    assert 'mf_step_seconds_bucket{le="0.005",part="compute",where="own"} 1.0' in text
    assert 'mf_step_seconds_count{part="network",where="route"} 1.0' in text
