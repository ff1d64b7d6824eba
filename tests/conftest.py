"""A skipped test is a failed one, unless `MF_ALLOW_SKIP` names it (parts of node ids, separated by commas)."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

# A change is judged on the same examples each time; the search for new ones goes on wherever CI isn't set.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "search")


def allowed_to_skip(node_id: str, allowed: str) -> bool:
    return any(name.strip() in node_id for name in allowed.split(",") if name.strip())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and not allowed_to_skip(item.nodeid, os.environ.get("MF_ALLOW_SKIP", "")):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped and MF_ALLOW_SKIP doesn't name it: {report.longrepr}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start real processes run on one worker, one after another: two cores carry one swarm."""
    for item in items:
        if item.get_closest_marker("swarm") is not None:
            item.add_marker(pytest.mark.xdist_group("swarm"))
