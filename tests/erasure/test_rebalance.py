from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.placement import Candidate, Placement
from erasure.rebalance import BURST, GroupHeld, Pace, moves


def node(number: int, domains: int = 1_000_000, **figures: object) -> Candidate:
    return replace(Candidate(f"peer{number}", f"domain{number % domains}"), **figures)  # type: ignore[arg-type]


def placed(view: Placement, count: int, n: int = 20, k: int = 10) -> list[GroupHeld]:
    names = [index.to_bytes(32, "big") for index in range(count)]
    return [GroupHeld(name, k, n, 100, dict(view.choose(name, n, k=k))) for name in names]


def test_ten_that_join_a_thousand_take_little_more_than_their_share() -> None:
    view = Placement(node(number) for number in range(1_000))
    held = placed(view, 5_000)
    joined = [node(5_000 + number) for number in range(10)]
    for candidate in joined:
        view.join(candidate)
    found = moves(view, held, [candidate.peer for candidate in joined])
    least = 5_000 * 20 * 100 * 10 / 1_010
    assert 0.8 * least <= sum(move.shard_bytes for move in found) <= 1.2 * least
    got = Counter(move.to for move in found)
    assert max(got.values()) / (len(found) / 10) <= 1.4
    assert len({(move.group, move.to) for move in found}) == len(found)


def test_each_holder_finds_its_own_part_of_the_same_moves() -> None:
    view = Placement(node(number) for number in range(30))
    held = placed(view, 40, n=6, k=3)
    view.join(node(99))
    whole = moves(view, held, ["peer99"])
    assert whole
    assert [move for number in range(30) for move in moves(view, held, ["peer99"], f"peer{number}")] == sorted(
        whole, key=lambda move: int(move.source[4:])
    )


def test_who_holds_too_much_gives_first_and_nobody_gives_more_for_it() -> None:
    view = Placement(node(number, room=0.3 if number < 6 else 0.9) for number in range(30))
    names = [index.to_bytes(32, "big") for index in range(60)]
    held = [GroupHeld(name, 3, 6, 1, dict(view.choose(name, 6, evenly=False))) for name in names]
    view.join(node(99, room=0.9))
    found = moves(view, held, ["peer99"])
    gives = {group.group: group for group in held}
    assert len(found) == sum("peer99" in dict(view.choose(name, 6, evenly=False)).values() for name in names)
    for move in found:
        group = gives[move.group]
        chosen = {peer for _, peer in view.choose(move.group, 6, evenly=False)}
        left = {peer for peer in group.held.values() if peer not in chosen}
        assert view.crowded(move.source) or not any(view.crowded(peer) for peer in left)


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 25), st.integers(2, 12), st.integers(1, 8), st.integers(0, 8), st.booleans())
def test_a_move_never_puts_more_into_one_domain(nodes: int, domains: int, n: int, joining: int, new: bool) -> None:
    view = Placement(node(number, domains) for number in range(nodes))
    held = [group for group in placed(view, 10, n, 1) if len(group.held) == n]
    joined = [node(100 + number, domains, new=new) for number in range(joining)]
    for candidate in joined:
        view.join(candidate)
    names = {candidate.peer for candidate in joined}
    for group in held:
        after = dict(group.held)
        before = Counter(view.domain(peer) for peer in group.held.values())
        for move in moves(view, [group], names):
            assert after[move.shard] == move.source not in names
            after[move.shard] = move.to
            assert max(Counter(view.domain(peer) for peer in after.values()).values()) <= max(before.values())
        assert len(set(after.values())) == n
        assert not new or len(names & set(after.values())) <= 1


def test_a_group_with_missing_shards_is_left_to_repair() -> None:
    view = Placement(node(number) for number in range(10))
    groups = placed(view, 50, n=4, k=2)
    for number in range(20, 40):
        view.join(node(number))
    newcomers = [f"peer{number}" for number in range(20, 40)]
    assert moves(view, groups, newcomers)
    torn = [replace(group, held={shard: peer for shard, peer in group.held.items() if shard}) for group in groups]
    assert moves(view, torn, newcomers) == []


def test_the_pace_bounds_what_moves() -> None:
    pace = Pace(rate=100.0)
    assert pace.wait(int(100 * BURST), 0.0) == 0
    assert pace.wait(200, 0.0) == pytest.approx(2.0)
    assert pace.wait(200, 1.0) == pytest.approx(1.0)
    assert pace.wait(200, 2.0) == 0
    large = int(1_000 * BURST)
    assert pace.wait(large, 2.0) == pytest.approx(BURST)
    assert pace.wait(large, 2.0 + BURST) == 0
    assert pace.wait(1, 3.0 + BURST) > BURST
