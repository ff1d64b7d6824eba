"""The rules of placement beyond one shard a node: who is new, who is relayed, where regions are, what changes keep."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.candidates import Weights
from erasure.placement import Candidate, Placement, place
from protocol.errors import BadInput

GROUP = bytes(range(32))


def node(number: int, **figures: object) -> Candidate:
    return replace(Candidate(f"peer{number}", f"domain{number}"), **figures)  # type: ignore[arg-type]


def groups(count: int) -> list[bytes]:
    return [index.to_bytes(32, "big") for index in range(count)]


candidates = st.lists(
    st.builds(
        Candidate,
        peer=st.integers(0, 40).map(lambda number: f"peer{number}"),
        domain=st.integers(0, 20).map(lambda number: f"domain{number}"),
        weight=st.sampled_from([0.0, 1.0, 2.0]),
        operator=st.sampled_from([None, None, None, "a", "b"]),
        reliability=st.none() | st.floats(0, 1),
        room=st.none() | st.floats(0, 1),
        region=st.sampled_from([None, "north", "south"]),
        relayed=st.booleans(),
        new=st.booleans(),
    ),
    max_size=40,
    unique_by=lambda candidate: candidate.peer,
)


@settings(max_examples=200, deadline=None)
@given(candidates, st.integers(1, 12), st.integers(0, 8))
def test_the_hard_rules_hold_for_any_swarm(nodes: list[Candidate], k: int, more: int) -> None:
    n = k + more
    places = place(GROUP, n, nodes, k=k)
    by_name = {candidate.peer: candidate for candidate in nodes}
    chosen = [by_name[peer] for _, peer in places]
    assert len({candidate.peer for candidate in chosen}) == len(chosen) <= n
    assert [shard for shard, _ in places] == list(range(len(places)))
    assert all(candidate.weight > 0 for candidate in chosen)
    assert sum(candidate.new for candidate in chosen) <= 1
    assert sum(candidate.relayed for candidate in chosen) <= n - k
    plain = sum(candidate.weight > 0 and not candidate.new and not candidate.relayed for candidate in nodes)
    assert len(places) >= min(n, plain)


@settings(max_examples=100, deadline=None)
@given(candidates, candidates, st.integers(1, 8))
def test_a_view_kept_up_decides_as_one_made_anew(before: list[Candidate], after: list[Candidate], n: int) -> None:
    kept = Placement(before)
    kept.choose(GROUP, n)
    for candidate in before:
        if candidate.peer not in {other.peer for other in after}:
            kept.leave(candidate.peer)
    for candidate in after:
        kept.join(candidate)
    assert len(kept) == len(after)
    anew = Placement(after)
    assert kept.choose(GROUP, n, k=1) == anew.choose(GROUP, n, k=1)
    assert [kept.domain(a.peer) == kept.domain(b.peer) for a in after for b in after] == [
        anew.domain(a.peer) == anew.domain(b.peer) for a in after for b in after
    ]


def test_held_shards_count_and_only_the_missing_are_placed() -> None:
    view = Placement([replace(node(number), domain=f"domain{number % 8}") for number in range(24)])
    whole = dict(view.choose(GROUP, 8))
    held = {shard: whole[shard] for shard in (0, 3, 5)}
    rest = view.choose(GROUP, 8, held=held, without=[whole[1]])
    assert [shard for shard, _ in rest] == [1, 2, 4, 6, 7]
    peers = [*held.values(), *(peer for _, peer in rest)]
    assert len(set(peers)) == 8
    assert whole[1] not in peers
    assert len({view.domain(peer) for peer in peers}) == 8


def test_a_new_or_relayed_holder_uses_up_what_such_may_hold() -> None:
    view = Placement([node(0, new=True), node(1, new=True), node(2, relayed=True), node(3, relayed=True), node(4), node(5)])
    rest = {peer for _, peer in view.choose(GROUP, 4, k=3, held={0: "peer0", 1: "peer2"})}
    assert rest == {"peer4", "peer5"}
    assert not view.fits("peer1", ["peer0"], 4, 3)
    assert not view.fits("peer3", ["peer2"], 4, 3)
    assert view.fits("peer3", ["peer2"], 4, 2)
    assert view.fits("peer4", ["peer0", "peer2"], 4, 3)


def test_domains_fill_evenly_once_they_are_used_up() -> None:
    view = Placement([replace(node(number), domain=f"domain{number % 3}") for number in range(30)])
    for group in groups(50):
        used = Counter(view.domain(peer) for _, peer in view.choose(group, 8))
        assert sorted(used.values()) == [2, 3, 3]


def test_one_huge_domain_is_passed_over() -> None:
    crowd = [replace(node(number), domain="crowd", weight=1e6) for number in range(3_000)]
    view = Placement([*crowd, *(node(10_000 + number) for number in range(7))])
    chosen = [peer for _, peer in view.choose(GROUP, 8)]
    assert len({view.domain(peer) for peer in chosen}) == 8


def test_a_region_with_its_fair_share_can_read_every_group_alone() -> None:
    nodes = [node(number, region="north" if number < 45 else "south" if number < 90 else None) for number in range(100)]
    view = Placement(nodes)
    region = {candidate.peer: candidate.region for candidate in nodes}
    for group in groups(200):
        there = Counter(region[peer] for _, peer in view.choose(group, 20, k=8))
        assert there["north"] >= 8
        assert there["south"] >= 8


def test_a_small_region_is_drawn_for_whole_models_in_proportion_to_its_worth() -> None:
    nodes = [node(number, region="small" if number < 20 else f"r{number % 9}") for number in range(200)]
    view = Placement(nodes)
    region = {candidate.peer: candidate.region for candidate in nodes}
    shards: Counter[str | None] = Counter()
    homes = 0
    for model in range(300):
        there = [
            region[peer]
            for group in groups(2)
            for _, peer in view.choose(group + bytes([model % 256]), 15, k=10, model=bytes([model % 256, 1]))
        ]
        shards.update(there)
        homes += there.count("small") >= 20
    assert 10 <= homes <= 60
    assert shards["small"] / shards.total() < 0.1 * 1.3


def test_a_region_is_never_served_at_the_cost_of_a_domain() -> None:
    nodes = [replace(node(number), region="here", domain=f"rack {number % 4}") for number in range(40)]
    nodes += [node(100 + number) for number in range(40)]
    view = Placement(nodes)
    for group in groups(30):
        assert len({view.domain(peer) for _, peer in view.choose(group, 12, k=6)}) == 12


def test_what_is_measured_counts_and_unknown_is_the_middle() -> None:
    weights = Weights()
    plain = weights.worth(node(0))
    assert weights.worth(node(0, reliability=1.0)) > plain > weights.worth(node(0, reliability=0.3))
    assert weights.worth(node(0, speed=1e8)) > plain > weights.worth(node(0, speed=1e5))
    assert weights.worth(node(0, distance=0.01)) > plain > weights.worth(node(0, distance=1.0))
    assert weights.worth(node(0, room=0.9)) > plain > weights.worth(node(0, room=0.1))
    assert weights.worth(node(0, weight=3.0)) == pytest.approx(3 * plain)
    assert weights.worth(node(0, weight=-1.0)) == 0
    with pytest.raises(BadInput):
        Weights(speed=-1.0)


def test_who_holds_clearly_more_than_its_share_stands_back_while_others_are_left() -> None:
    nodes = [node(number, weight=2.0, room=0.9 if number < 15 else 0.4) for number in range(20)]
    view = Placement(nodes)
    assert [view.crowded(f"peer{number}") for number in (0, 14, 15, 19, 99)] == [False, False, True, True, False]
    for group in groups(30):
        assert not any(view.crowded(peer) for _, peer in view.choose(group, 15))
        assert sum(view.crowded(peer) for _, peer in view.choose(group, 18)) == 3
    assert any(view.crowded(peer) for group in groups(30) for _, peer in view.choose(group, 6, evenly=False))
    view.join(node(0, weight=2.0, room=0.1))
    assert view.crowded("peer0")
    view.leave("peer0")
    assert not view.crowded("peer0")


def test_who_doesnt_tell_its_room_isnt_crowded() -> None:
    view = Placement([node(0), node(1, room=0.9), node(2, room=0.9), node(3, room=0.1, weight=0.0)])
    assert not any(view.crowded(f"peer{number}") for number in range(4))


def test_a_crowded_node_comes_before_a_second_one_of_a_domain() -> None:
    nodes = [replace(node(number, room=0.8), domain="rack") for number in range(5)]
    view = Placement([*nodes, node(9, room=0.1)])
    assert "peer9" in {peer for _, peer in view.choose(GROUP, 2)}


def spread(nodes: list[Candidate], models: int) -> Counter[str]:
    """Shards of each node after so many models of 30 groups, 20 shards each; between two of them all tell their room."""
    view = Placement(nodes)
    lent = 2 * models * 30 * 20 / sum(candidate.weight for candidate in nodes)
    used: Counter[str] = Counter()
    for model in range(models):
        for candidate in nodes:
            view.join(replace(candidate, room=round(1 - used[candidate.peer] / (lent * candidate.weight), 3)))
        for index in range(30):
            places = view.choose(index.to_bytes(32, "big"), 20, k=10, salt=model.to_bytes(2, "big"), model=model.to_bytes(2, "big"))
            used.update(peer for _, peer in places)
    return used


def mixed_node(number: int) -> Candidate:
    rng = random.Random(number)
    measured = {"reliability": rng.uniform(0.5, 1.0), "speed": rng.uniform(1e6, 1e8), "distance": rng.uniform(0.005, 0.3)}
    return node(number, weight=rng.choice((1.0, 2.0, 4.0)), region=f"r{number % 8}", **measured)


@pytest.mark.parametrize("mixed", [False, True])
def test_used_space_is_even_over_a_thousand_nodes(mixed: bool) -> None:
    nodes = [mixed_node(number) if mixed else node(number) for number in range(1_000)]
    used = spread(nodes, 100)
    worth = {candidate.peer: Weights().worth(candidate) for candidate in nodes}
    fair = used.total() / sum(worth.values())
    assert max(used[peer] / (fair * worth[peer]) for peer in worth) <= 1.3


def test_used_space_follows_what_is_lent() -> None:
    nodes = [node(number, weight=1.0 + number % 3) for number in range(300)]
    used = spread(nodes, 40)
    fair = used.total() / sum(candidate.weight for candidate in nodes)
    for lent in (1.0, 2.0, 3.0):
        alike = [used[candidate.peer] / (fair * lent) for candidate in nodes if candidate.weight == lent]
        assert 0.93 <= sum(alike) / len(alike) <= 1.07
        assert max(alike) <= 1.3


def test_a_decision_among_ten_thousand_takes_a_millisecond() -> None:
    view = Placement([node(number, region=f"region {number % 8}", room=number % 10 / 10) for number in range(10_000)])
    view.choose(GROUP, 20, k=10)
    spent = []
    for group in groups(30):
        started = time.thread_time()
        view.choose(group, 20, k=10)
        spent.append(time.thread_time() - started)
    assert sorted(spent)[len(spent) // 2] <= 0.003


def test_impossible_k_is_refused() -> None:
    with pytest.raises(BadInput):
        place(GROUP, 3, [node(1)], k=4)
