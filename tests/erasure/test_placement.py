from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.placement import Candidate, domain_of, merged_domains, place
from protocol.errors import BadInput

GROUP = bytes(range(32))


def swarm(count: int, domains: int | None = None) -> list[Candidate]:
    return [Candidate(f"peer{i}", f"domain{i % (domains or count)}") for i in range(count)]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(1, 30), st.integers(1, 30), st.binary(max_size=4))
def test_one_shard_a_node_and_domains_evenly(n: int, nodes: int, domains: int, salt: bytes) -> None:
    candidates = swarm(nodes, domains)
    places = place(GROUP, n, candidates, salt)
    assert [shard for shard, _ in places] == list(range(min(n, nodes)))
    assert len({peer for _, peer in places}) == len(places)
    of = {candidate.peer: candidate.domain for candidate in candidates}
    used = Counter(of[peer] for _, peer in places)
    if len(set(of.values())) >= len(places):
        assert max(used.values()) == 1


def test_everybody_computes_the_same_whatever_the_order() -> None:
    candidates = swarm(9)
    assert place(GROUP, 6, candidates) == place(GROUP, 6, candidates[::-1])
    assert place(GROUP, 6, candidates) != place(GROUP, 6, candidates, b"tomorrow")


def test_a_leaving_node_moves_little() -> None:
    candidates = swarm(40)
    before = dict(place(GROUP, 6, candidates))
    gone = before[2]
    after = dict(place(GROUP, 6, [c for c in candidates if c.peer != gone]))
    assert sum(before[shard] != after[shard] for shard in range(6)) <= 2


def test_weight_draws_shards_in_proportion() -> None:
    candidates = [Candidate("big", "a", 3.0), Candidate("small", "b", 1.0), Candidate("none", "c", 0.0)]
    got = Counter(place(i.to_bytes(32, "big"), 1, candidates)[0][1] for i in range(2000))
    assert 0.68 < got["big"] / 2000 < 0.82
    assert got["none"] == 0


def test_a_label_only_merges() -> None:
    one = [Candidate("a", "10.0.0.0/24", operator="x"), Candidate("b", "10.0.0.0/24", operator="y")]
    assert len(set(merged_domains(one).values())) == 1
    two = [Candidate("a", "d1", operator="x"), Candidate("b", "d2", operator="x"), Candidate("c", "d3")]
    assert len(set(merged_domains(two).values())) == 2


@pytest.mark.parametrize(
    ("addresses", "machine", "domain"),
    [
        (["8.8.8.8"], None, "8.8.8.0/24"),
        (["10.0.0.7", "8.8.4.4"], "m", "8.8.4.0/24"),
        (["2001:4860:4860::8888"], None, "2001:4860:4860::/48"),
        (["::ffff:8.8.8.8"], None, "8.8.8.0/24"),
        (["192.168.1.5"], "box", "machine box"),
        (["192.168.1.5"], None, "machine 192.168.1.5"),
        (["127.0.0.1"], "box", "node me"),
        (["not an address"], None, "node me"),
    ],
)
def test_domains(addresses: list[str], machine: str | None, domain: str) -> None:
    assert domain_of("me", addresses, machine) == domain


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(BadInput):
        place(GROUP, 0, swarm(3))
