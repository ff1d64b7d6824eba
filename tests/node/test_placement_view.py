"""What the policy is told of peers: measured or nothing."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from erasure.placement import Candidate
from node.placement_view import PlacementView, candidate_of
from node.swarm.interface import PeerView
from protocol.ids import PeerId
from tests.node.verb_fakes import Board, FakeSwarm, node_record

ME = PeerId("me")


def view(peer: str = "A", **changes: Any) -> PeerView:
    plain = PeerView(PeerId(peer), node_record(), [f"/ip4/8.8.{ord(peer[0])}.8/tcp/1"], True, False, None, time.time())
    return replace(plain, **changes)


class Views(FakeSwarm):
    def __init__(self, views: list[PeerView]) -> None:
        super().__init__(ME, Board())
        self.views = views
        self.trust_all = False

    def peers(self) -> list[PeerView]:
        return self.views


def test_unknown_is_nothing_and_measured_is_told() -> None:
    bare = candidate_of(view())
    assert (bare.room, bare.reliability, bare.speed, bare.distance, bare.region) == (None, None, None, None, None)
    assert bare.weight == 1 << 30
    record = node_record(storage=1 << 31, storage_free=1 << 30, region="eu")
    full = candidate_of(view(record=record, rtt=0.0123, availability=0.914), speed=1.234e7)
    assert (full.weight, full.room, full.reliability, full.speed, full.distance) == (float(1 << 31), 0.5, 0.91, 1.2e7, 0.012)
    assert full.region == "eu"
    assert candidate_of(view(rtt=None, distance=0.2)).distance == 0.2


def test_nobody_gets_a_shard_who_has_no_room_or_doesnt_answer() -> None:
    full = view("A", record=node_record(storage=100, storage_free=0))
    views = [full, view("B", routable=False), view("C", record=node_record(lend="compute")), view("D"), view("E", record=None), view("F")]
    swarm = Views(views)
    swarm.bans.add(PeerId("F"))
    kept = PlacementView(Candidate(ME, "mine"), swarm)
    assert {peer for _, peer in kept.placement().choose(bytes(32), 6)} == {ME, "D"}
    assert {candidate.peer for candidate in kept.candidates()} == {ME, "A", "D"}
    assert kept.bearing() == 2
    assert kept.domains()["B"] == "domain 8.8.66.0/24"


def test_the_view_follows_joins_changes_and_leaves() -> None:
    swarm = Views([view("A"), view("B")])
    kept = PlacementView(Candidate(ME, "mine"), swarm)
    placement = kept.placement()
    assert len(placement) == 3
    swarm.views = [view("A"), view("C", addresses=["/ip4/8.8.8.8/tcp/1/p2p/x/p2p-circuit"])]
    assert kept.placement() is placement
    assert {peer for _, peer in placement.choose(bytes(32), 6)} == {ME, "A", "C"}
    assert {peer for _, peer in placement.choose(bytes(32), 3, k=3)} == {ME, "A"}


def test_strangers_of_today_count_as_one_unless_trusted() -> None:
    swarm = Views([view(name, new=True) for name in "ABC"])
    kept = PlacementView(Candidate(ME, "mine"), swarm)
    assert kept.bearing() == 2
    assert len(kept.placement().choose(bytes(32), 4)) == 2
    swarm.trust(PeerId("A"))
    assert kept.bearing() == 3
    assert len(kept.placement().choose(bytes(32), 4)) == 3


def test_a_round_trip_that_wavers_changes_no_candidate() -> None:
    assert candidate_of(view(rtt=0.01231)) == candidate_of(view(rtt=0.01234))
