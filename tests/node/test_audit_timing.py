"""The deadline between a disk and a network: seeded trials of honest peers of every speed, and of fakers that fetch what is asked.

Each trial is an audit under delays of its own. The figures are printed (`pytest -rP`, or -s), the bars asserted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from erasure.audit import HeldShard, Speeds, Verdict
from node.audit_exchange import AuditExchange, Subject
from tests.node.audit_world import ENCODING, Coded, Fetching, FetchingAll, Honest, World
from tests.support.virtual_time import run_virtual

TRIALS = 200
MIB = 1 << 20
LARGE, MIDDLE = Coded.of(1, 1, 1, 256), Coded.of(2, 1, 1, 64)
"""Shards of 64 and 16 MiB."""
Make = Callable[[World, Random], Any]


def audits(coded: Coded, seed: int, make: Make, count: int, stall: float) -> list[Verdict]:
    """The verdicts of so many audits of one peer, one after another."""

    async def run() -> list[Verdict]:
        world = await World(coded, seed, stall).start()
        exchange = AuditExchange(world.network, Speeds(), world.rng, world.swarm.clock)
        peer = await world.add(0, make(world, Random(seed)))
        subject = Subject(HeldShard(peer, ENCODING, 0), coded.record)
        found = [(await exchange.audit(peer, [subject], None))[0].verdict for _ in range(count)]
        await world.stop()
        return found

    return run_virtual(run())


def tally(name: str, coded: Coded, make: Make, trials: int = TRIALS, each: int = 1, stall: float = 0.0) -> Counter[Verdict]:
    """`each` audits of a peer, of as many peers as make `trials`."""
    found = Counter(verdict for seed in range(trials // each) for verdict in audits(coded, seed, make, each, stall))
    said = ", ".join(f"{verdict.value} {100 * count / trials:.1f} %" for verdict, count in found.most_common())
    print(f"MEASURED {name}, {len(coded.shards[0]) // MIB} MiB, {trials} audits: {said}")
    return found


def gauss(rng: Random, mean: float, spread: float, least: float) -> Callable[[], float]:
    return lambda: max(least, rng.gauss(mean, spread))


def ssd(coded: Coded) -> Make:
    store = coded.store(0)
    return lambda world, rng: Honest(store, gauss(rng, 0.0003, 0.0001, 0.0001))


def spinning(coded: Coded) -> Make:
    """A disk of 7,200 turns: half a turn is 4.2 ms, a seek some 8; opening a file that nobody has read lately takes two of them."""
    store = coded.store(0)
    return lambda world, rng: Honest(store, gauss(rng, 0.012, 0.003, 0.004), gauss(rng, 0.024, 0.006, 0.008))


def busy(coded: Coded) -> Make:
    """The same disk with others' reads before one in three of ours."""
    store = coded.store(0)

    def make(world: World, rng: Random) -> Honest:
        quiet = gauss(rng, 0.012, 0.003, 0.004)
        return Honest(store, lambda: quiet() + (rng.expovariate(1 / 0.012) if rng.random() < 1 / 3 else 0.0), lambda: 2 * quiet())

    return make


def fetching(coded: Coded) -> Make:
    return lambda world, rng: Fetching(coded, world.to_accomplice(0))


def fetching_all(coded: Coded, speed: float) -> Make:
    return lambda world, rng: FetchingAll(coded, world.to_accomplice(0), speed)


@pytest.mark.parametrize("kind", [ssd, spinning, busy])
def test_honest_peers_pass_and_are_never_accused(kind: Callable[[Coded], Make]) -> None:
    """Ten audits of each of twenty: unknown at first, then held to what they have shown."""
    found = tally(f"honest, {kind.__name__}", LARGE, kind(LARGE), each=10)
    assert found[Verdict.PASSED] >= 0.98 * TRIALS
    assert set(found) <= {Verdict.PASSED, Verdict.LATE}


def test_a_network_that_stalls_makes_some_late_and_none_a_liar() -> None:
    """One message in a hundred takes a second more; an audit's clock runs over two. A ping may stall twice: nothing is known then."""
    found = tally("honest, spinning, 1 % of messages stall", LARGE, spinning(LARGE), each=10, stall=0.01)
    assert found[Verdict.PASSED] >= 0.94 * TRIALS
    assert set(found) <= {Verdict.PASSED, Verdict.LATE, Verdict.UNKNOWN}


@pytest.mark.parametrize("coded", [LARGE, pytest.param(MIDDLE, marks=pytest.mark.nightly)], ids=["64 MiB", "16 MiB"])
def test_fakers_that_fetch_each_leaf_fail(coded: Coded) -> None:
    found = tally("fetches each leaf", coded, fetching(coded))
    assert found[Verdict.PASSED] <= 0.05 * TRIALS
    assert set(found) <= {Verdict.PASSED, Verdict.LATE}


def test_fakers_that_fetch_the_shard_whole_fail() -> None:
    found = tally("fetches the shard whole at 100 Mbit/s", MIDDLE, fetching_all(MIDDLE, 12.5e6))
    assert found[Verdict.PASSED] <= 0.05 * TRIALS
    assert set(found) <= {Verdict.PASSED, Verdict.LATE}


@pytest.mark.nightly
def test_what_the_deadline_does_not_catch_is_known() -> None:
    """Only shown. A faker of a group with k = 2 must fetch twice the bytes: at 1 Gbit/s it is as fast as a copy's faker at 500 Mbit/s."""
    small = Coded.of(3, 1, 1, 4)
    for coded, speed in ((small, 12.5e6), (MIDDLE, 62.5e6), (LARGE, 62.5e6), (MIDDLE, 125e6), (LARGE, 125e6)):
        tally(f"fetches the shard whole at {speed * 8 / 1e6:.0f} Mbit/s", coded, fetching_all(coded, speed), 40)
    tally("fetches each leaf", small, fetching(small), 40)
