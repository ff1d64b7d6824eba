"""Fresh identities from one address at a keyed listener beyond loopback, in a network namespace: together they get no more than one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from node.accounts.accounts import REGISTRATIONS_PER_HOUR
from node.accounts.allowance import TIERS
from tests.support.own_network import run
from tests.support.synthetic import tiny_llama

pytestmark = pytest.mark.swarm
ALLOWANCE = TIERS["free"].requests_per_hour or 0
MOST_GROWN = 96 << 20
"""Bytes by which the node may grow; a password's hash takes 64 MiB for a moment, and few at once."""


def _check(told: dict[str, Any], count: int, good: set[str]) -> None:
    print(f"{count} identities, registrations and keys: {told}")
    refilled = told["seconds"] * ALLOWANCE / 3_600
    through = sum(times for answer, times in told["identities"].items() if answer in good)
    assert ALLOWANCE <= through <= ALLOWANCE + refilled
    assert told["identities"].keys() - good == {"429 rate_limited with Retry-After"}
    assert sum(told["identities"].values()) == count
    registered = told["registrations"]
    assert registered == {"201 good": REGISTRATIONS_PER_HOUR, "429 busy with Retry-After": count - REGISTRATIONS_PER_HOUR}
    spent = told["accounts"]
    assert spent.get("429 rate_limited with Retry-After", 0) >= REGISTRATIONS_PER_HOUR - refilled, "their accounts get no more"
    made_up = told["keys"]
    assert made_up.keys() == {"401 unauthorized", "429 busy with Retry-After"}
    assert made_up["401 unauthorized"] <= 40
    assert set(told["elsewhere"]) <= good, "at another address nothing is spent"
    assert told["grown"] < MOST_GROWN


def test_a_crowd_at_one_address_gets_what_one_gets(tmp_path: Path) -> None:
    told = json.loads(run("tests.swarm.crowd", str(tmp_path), "200", timeout=90.0).splitlines()[-1])
    _check(told, 200, {"404 model_not_found", "404 not_found", "202 good", "200 good"})


@pytest.mark.nightly
def test_a_thousand_get_no_more_real_replies_than_one(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    told = json.loads(run("tests.swarm.crowd", str(tmp_path), "1000", str(model), timeout=240.0).splitlines()[-1])
    _check(told, 1000, {"200 good", "202 good"})
