"""No reply fails, whatever dies: workers and whole nodes killed or stopped while replies run, with real processes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from runtime.row_attention import by_rows
from tests.swarm import chaos, tools

pytestmark = pytest.mark.swarm
PAUSE = 5.0
EQUAL = 0.95
"""In the reference precision, and in bf16 where each row is what it is by itself. Elsewhere it depends on how often a model finds two
tokens as good as equal, and it is shown."""


def check(made: chaos.Chaos, what: str) -> None:
    made.report(what)
    assert made.failed() == []
    assert sum(told.reply.replaced for told in made.told) > 0, "nothing was disturbed"
    assert max(made.gaps(), default=0.0) <= chaos.EPSILON[made.precision]
    if made.precision == "fp32" or by_rows(torch.zeros(1, dtype=torch.bfloat16)):
        assert len(made.different()) <= (1 - EQUAL) * len(made.told)
    assert made.longest_wait() <= tools.SLACK * PAUSE


def test_no_reply_fails_while_workers_and_a_node_are_killed(tmp_path: Path) -> None:
    with chaos.chaos(tmp_path, 3) as made:
        made.run(20.0, 5.0, chaos.harm_mostly_workers(signal.SIGKILL, chaos.kill_node, (1,)))
        check(made, "three sessions, 20 s, killed every 5 s")


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_eight_sessions_for_two_minutes_of_kills(tmp_path: Path, precision: str) -> None:
    with chaos.chaos(tmp_path, 8, precision) as made:
        made.run(120.0, 10.0, chaos.harm_mostly_workers(signal.SIGKILL, chaos.kill_node, (3, 8)))
        check(made, f"eight sessions in {precision}, 120 s, killed every 10 s")


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_eight_sessions_for_two_minutes_of_stops(tmp_path: Path, precision: str) -> None:
    with chaos.chaos(tmp_path, 8, precision) as made:
        made.run(120.0, 10.0, chaos.harm_mostly_workers(signal.SIGSTOP, chaos.stop_node, (3, 8)))
        check(made, f"eight sessions in {precision}, 120 s, stopped every 10 s")
