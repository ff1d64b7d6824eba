"""Steps are added to the metrics together, and whoever looks misses none."""

from __future__ import annotations

import pytest

from node.http import metrics
from node.http.metrics import Metrics


@pytest.mark.parametrize("count", [1, metrics._TOGETHER - 1, metrics._TOGETHER, metrics._TOGETHER + 1])
def test_each_step_is_counted_once(count: int) -> None:
    made = Metrics()
    for _ in range(count):
        made.step("own", "compute", 0.003)
    made.step("route", "network", 0.001)
    for _ in range(2):
        assert made.registry.get_sample_value("mf_step_seconds_count", {"where": "own", "part": "compute"}) == count
        assert made.registry.get_sample_value("mf_step_seconds_count", {"where": "route", "part": "network"}) == 1
