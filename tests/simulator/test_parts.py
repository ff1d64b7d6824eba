from __future__ import annotations

import random

import pytest

from erasure.repair import Claim
from tests.simulator.events import Events
from tests.simulator.groups import LAG_MOST, NEVER, Claimed, Placed, SimGroup, lag
from tests.simulator.nodes import make_node, round_trip
from tests.simulator.results import Ideal


def test_events_come_in_the_order_of_time_then_of_asking() -> None:
    events, seen = Events(), []
    events.at(5.0, lambda: seen.append("later"))
    events.at(1.0, lambda: seen.append("first"))
    events.at(1.0, lambda: (seen.append("second"), events.after(1.0, lambda: seen.append("third")))[0])
    events.at(9.0, lambda: seen.append("never"))
    events.run(6.0)
    assert seen == ["first", "second", "third", "later"]
    assert (events.now, events.done) == (6.0, 4)


def test_round_trips_follow_the_map() -> None:
    rng = random.Random(4)
    nodes = [make_node(number, 10, rng) for number in range(300)]
    near = [round_trip(a, b) for a in nodes[:60] for b in nodes if a.region == b.region and a is not b]
    far = [round_trip(a, b) for a in nodes for b in nodes if (a.region, b.region) == ("europe", "australia")]
    assert 0.016 <= min(near) < sum(near) / len(near) < 0.05
    assert 0.12 < min(far) <= max(far) < 0.25
    assert round_trip(nodes[0], nodes[1]) == pytest.approx(round_trip(nodes[1], nodes[0]))


def test_lags_are_mostly_seconds_and_never_over_two_minutes() -> None:
    lags = [lag(observer, event) for observer in range(200) for event in range(200)]
    assert 1 <= min(lags) <= max(lags) <= LAG_MOST
    assert 0.85 < sum(found <= 10 for found in lags) / len(lags) < 0.95
    assert len({round(found, 3) for found in lags}) > 5000


def group_of() -> SimGroup:
    return SimGroup(1, b"g" * 32, 2, 4, 8, 100)


def test_a_holding_is_heard_by_and_by_and_over_a_cut_not_before_it_heals() -> None:
    rng = random.Random(1)
    holder, near, far = (make_node(number, 4, rng) for number in range(3))
    far.side = 1
    group = group_of()
    group.holders[0] = [holder]
    group.recent.append(Placed(7, 100.0, 0, NEVER, 0, holder))
    assert group.seen_by(holder, 100.0).holders == {0: (holder.name,)}
    assert group.seen_by(near, 100.5).holders == {}
    assert group.seen_by(near, 100.0 + LAG_MOST).holders == {0: (holder.name,)}
    assert group.seen_by(far, 100_000.0).holders == {}
    group.settle(100_000.0)
    assert group.recent
    group.healed(200_000.0)
    assert group.seen_by(far, 200_000.0 + LAG_MOST).holders == {0: (holder.name,)}
    group.settle(200_000.0 + LAG_MOST)
    assert not group.recent
    assert group.settled().holders == {0: (holder.name,)}


def test_the_newest_claim_of_a_peer_counts_once_it_is_heard() -> None:
    rng = random.Random(1)
    claimer, observer = make_node(0, 4, rng), make_node(1, 4, rng)
    group = group_of()
    for number, expires in ((1, 5000.0), (2, 300.0)):
        group.claims.append(Claimed(number, 100.0 * number, 0, 100.0 * number, Claim(group.name, claimer.name, expires), claimer))
    assert group.claims_seen_by(observer, 100.0) == []
    assert [claim.expires for claim in group.claims_seen_by(observer, 400.0)] == [300.0]
    assert group.claims_seen_by(claimer, 400.0) == []
    group.settle(400.0)
    assert group.claims == []


def test_the_ideal_repairer_pays_k_reads_and_each_missing_shard() -> None:
    ideal = Ideal(4, 10, 1000, 0)
    for node in range(30):
        ideal.came(node)
    ideal.group(0, list(range(10)))
    for node in range(3):
        ideal.left(node)
    assert ideal.bytes == 0
    ideal.left(3)
    assert ideal.bytes == (4 + 4) * 1000
