"""A skipped test is a failed one, unless `MF_ALLOW_SKIP` names it (parts of node ids, separated by commas)."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# As in the worker: sums in the same order wherever a matrix lies. MKL reads it once.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# As many tests run beside each other as there are cores: threads that wait for one another's cores made small models ten times as slow.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")

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


# Tests that start real processes run in two lines, each one after another: two cores carry two swarms. The lines take about as long,
# and files that share a swarm are in one.
FIRST_LINE = ("test_faults", "test_secrets", "test_widen", "test_run", "test_audits")


class Lines(LoadScopeScheduling):  # type: ignore[misc]
    """A worker gets a whole line of swarm tests, or a file of others. (xdist's own groups need a pytest before 9.)"""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if "tests/clients/" in file:
            return "first line"
        if "swarm/" not in file or "/node/" in file:
            return file
        return "first line" if Path(file).stem in FIRST_LINE else "second line"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lines:
    return Lines(config, log)
