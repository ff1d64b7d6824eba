"""The swarm among in-memory nodes: joining, knowing everyone, freezing, dying, names and restarts."""

from __future__ import annotations

import asyncio
import logging
from random import Random

import pytest

from erasure.audit import HeldShard, Verdict
from erasure.coordinates import coordinate_from
from node.swarm.door import model_key
from node.swarm.own import OwnRecords
from node.swarm.reputation import shard_text
from protocol.errors import BadInput, Unavailable
from protocol.ids import EncodingId, digest
from protocol.records import Held, Serving
from tests.node.swarm.nodes import Nodes, card, model_of, routable
from tests.support.wait import until

ENCODING = EncodingId(digest(b"encoding"))


def elapsed(since: float) -> float:
    return asyncio.get_running_loop().time() - since


async def test_seven_nodes_joined_by_ticket_know_each_other_and_the_seventh_resolves_a_name_at_once() -> None:
    async with Nodes(stall=0.01) as nodes:
        six = await nodes.swarm(6)
        publisher = six[2]
        await publisher.membership.put_card(card("smol", label="owner3", model=1))
        for number, node in enumerate(six):
            await node.membership.put_holding(model_of(1), [Held(0, ENCODING, [number])], [])
        everyone = {node.peer for node in six}
        await until(lambda: all(routable(n) == everyone - {n.peer} for n in six), 5, "full mesh")
        await until(lambda: all(len(n.membership.holders(ENCODING)) == 6 for n in six), 5, "all holdings known")

        seventh = await nodes.node()
        began = asyncio.get_running_loop().time()
        assert await seventh.membership.join(six[4].membership.ticket()) >= 1
        assert seventh.membership.resolve("smol") == model_of(1)
        assert seventh.membership.resolve("owner3/smol@1") == model_of(1)
        await until(lambda: routable(seventh) == everyone, 5, "the seventh reaches everyone")
        await until(lambda: all(seventh.peer in routable(n) for n in six), 5, "everyone reaches the seventh")
        assert elapsed(began) < 6
        assert {shard: len(peers) for shard, peers in seventh.membership.holders(ENCODING).items()} == dict.fromkeys(range(6), 1)
        assert all(view.member for view in seventh.membership.peers())
        assert all(n.membership.trusted(seventh.peer) for n in six)


async def test_a_bare_name_resolves_after_its_publisher_died_and_after_everyone_restarted() -> None:
    async with Nodes() as nodes:
        first, publisher, third = await nodes.swarm(3)
        await publisher.membership.put_card(card("smol", label="p"))
        await until(lambda: bool(third.membership.cards() and first.membership.cards()), 3, "the card spreads")
        nodes.hub.kill(publisher.peer)
        await until(lambda: publisher.peer not in routable(third), 2, "the publisher is noticed gone")
        newcomer = await nodes.node()
        await newcomer.membership.join(third.membership.ticket())
        assert newcomer.membership.resolve("smol") == model_of(1)
        await until(lambda: newcomer.saved is not None and bool(newcomer.saved.cards), 3, "the card is saved")
        state = newcomer.saved
        await newcomer.stop()
        again = await nodes.node(seed=4, state=state)
        assert again.membership.resolve("smol") == model_of(1)
        await until(lambda: third.peer in routable(again), 4, "it returns to the peers it knew")


async def test_a_frozen_peer_is_not_routable_within_ten_seconds_and_returns_by_its_first_answer() -> None:
    async with Nodes() as nodes:
        one, two, frozen = await nodes.swarm(3)
        await frozen.membership.put_holding(model_of(1), [Held(0, ENCODING, [5])], [])
        await until(lambda: 5 in one.membership.holders(ENCODING) and 5 in two.membership.holders(ENCODING), 3, "holding known")
        nodes.hub.freeze(frozen.peer)
        began = asyncio.get_running_loop().time()
        await until(lambda: frozen.peer not in routable(one) | routable(two), 10, "the frozen peer is noticed")
        assert elapsed(began) < 7
        assert two.peer in routable(one)
        assert one.membership.holders(ENCODING) == {}
        nodes.hub.thaw(frozen.peer)
        await until(lambda: frozen.peer in routable(one) & routable(two), 4, "it is routable again")


async def test_a_killed_peer_is_not_routable_at_once() -> None:
    async with Nodes() as nodes:
        one, two, killed = await nodes.swarm(3)
        await until(lambda: killed.peer in routable(two), 3, "mesh")
        nodes.hub.kill(killed.peer)
        began = asyncio.get_running_loop().time()
        await until(lambda: killed.peer not in routable(one) | routable(two), 2, "the death is noticed")
        assert elapsed(began) < 2
        view = one.membership.peer(killed.peer)
        assert view is not None
        assert not view.routable


async def test_frozen_and_dead_peers_in_a_ticket_do_not_delay_the_join() -> None:
    async with Nodes() as nodes:
        one, frozen, dead = await nodes.swarm(3)
        await one.membership.put_card(card("smol"))
        await until(lambda: len(routable(one)) == 2, 3, "mesh")
        ticket = one.membership.ticket()
        nodes.hub.freeze(frozen.peer)
        nodes.hub.kill(dead.peer)
        newcomer = await nodes.node()
        began = asyncio.get_running_loop().time()
        assert await newcomer.membership.join(ticket) == 1
        assert newcomer.membership.resolve("smol") == model_of(1)
        assert elapsed(began) < 2.5


async def test_a_suspected_peer_is_probed_at_once() -> None:
    async with Nodes() as nodes:
        one, two = await nodes.swarm(2)
        await until(lambda: two.peer in routable(one), 3, "mesh")
        one.membership.suspect(two.peer, "missed a leaf's deadline")
        assert two.peer not in routable(one)
        await until(lambda: two.peer in routable(one), 1, "the probe clears it")
        nodes.hub.freeze(two.peer)
        one.membership.suspect(two.peer, "missed a leaf's deadline")
        await asyncio.sleep(0.8)
        assert two.peer not in routable(one)


async def test_a_stranger_without_the_secret_is_connected_but_neither_member_nor_trusted() -> None:
    async with Nodes() as nodes:
        one, stranger = await nodes.node(), await nodes.node()
        await stranger.network.dial(one.peer, one.network.addresses())
        await until(lambda: stranger.peer in routable(one), 3, "routable")
        await stranger.membership.put_card(card("smol"))
        await until(lambda: bool(one.membership.cards()), 3, "its card is known")
        view = one.membership.peer(stranger.peer)
        assert view is not None
        assert not view.member
        assert not one.membership.trusted(stranger.peer)
        with pytest.raises(Exception, match="no model is known") as caught:
            one.membership.resolve("smol")
        assert caught.value.details["candidates"] == ["ann/smol@1"]  # type: ignore[attr-defined]
        one.membership.trust(stranger.peer)
        assert one.membership.resolve("smol") == model_of(1)
        assert one.saved is not None
        assert one.saved.trusts == [stranger.peer]


async def test_a_model_is_found_through_the_door_when_no_holder_is_known() -> None:
    async with Nodes() as nodes:
        holder, asker = await nodes.node(), await nodes.node()
        await holder.membership.put_holding(model_of(9), [Held(0, ENCODING, [1, 2])], [])
        await until(lambda: model_key(model_of(9)) in nodes.dht.providers, 3, "announced")
        assert asker.membership.holdings(model_of(9)) == []
        await asker.membership.find_model(model_of(9), 5)
        assert [view.peer for view in asker.membership.holdings(model_of(9))] == [holder.peer]
        assert asker.membership.holders(ENCODING) == {1: [holder.peer], 2: [holder.peer]}
        await holder.membership.put_holding(model_of(9), [], [])
        await until(lambda: asker.membership.holdings(model_of(9)) == [], 3, "withdrawn")
        assert nodes.dht.providers[model_key(model_of(9))] == {}


async def test_layers_served_are_known_though_no_shard_lies_there() -> None:
    async with Nodes() as nodes:
        one, two = await nodes.swarm(2)
        serving = Serving(0, 15, "bf16", True, 850)
        await one.membership.put_holding(model_of(7), [], [], serves=[serving])
        await until(lambda: bool(two.membership.holdings(model_of(7))), 3, "told")
        assert two.membership.holdings(model_of(7))[0].serves == (serving,)
        await one.membership.put_holding(model_of(7), [], [])
        await until(lambda: two.membership.holdings(model_of(7)) == [], 3, "withdrawn")


async def test_tickets_that_lead_nowhere_say_so() -> None:
    async with Nodes() as nodes:
        one, gone = await nodes.node(), await nodes.node()
        ticket = gone.membership.ticket()
        nodes.hub.kill(gone.peer)
        with pytest.raises(Unavailable, match="none of the ticket's peers"):
            await one.membership.join(ticket)
        with pytest.raises(BadInput):
            await one.membership.join("mft1nonsense")
        with pytest.raises(BadInput, match="itself"):
            await one.membership.join(one.membership.ticket())


async def test_a_second_node_with_one_identity_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    async with Nodes() as nodes:
        one, two = await nodes.swarm(2)
        other = OwnRecords(
            one.membership._key, one.membership._config, type(one.membership._own.facts)(boot=b"x" * 16), lambda: [], one.membership._now
        )
        caplog.set_level(logging.ERROR)
        await two.membership._exchange.take(two.peer, [other.node(two.membership._archive)])
        await until(lambda: any(getattr(r, "event", "") == "identity_duplicate" for r in caplog.records), 3, "the duplicate is logged")
        boot = one.membership._own.facts.boot
        await until(lambda: two.membership.peer(one.peer).record.boot == boot, 3, "the first node's record stands again")  # type: ignore[union-attr]


async def test_no_secret_or_ticket_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with Nodes() as nodes:
        one, _two = await nodes.swarm(2)
        ticket = one.membership.ticket()
        secret = one.membership._trust.secret
    text = caplog.text + "".join(str(getattr(record, "fields", "")) for record in caplog.records)
    assert ticket not in text
    assert secret.hex() not in text
    assert repr(secret) not in text


async def test_what_counts_is_held_here_or_passed_an_audit_or_was_put_by_this_node() -> None:
    async with Nodes() as nodes:
        one, two, three, four = await nodes.swarm(4)
        for number, node in enumerate((one, two, three, four)):
            await node.membership.put_holding(model_of(1), [Held(0, ENCODING, [number])], [])
        await until(lambda: len(one.membership.holders(ENCODING)) == 4, 3, "all holdings known")
        assert one.membership.counted(ENCODING) == {0: [one.peer]}
        one.membership.vouch(HeldShard(two.peer, ENCODING, 1))
        now = asyncio.get_running_loop().time()
        one.membership.audits.note(HeldShard(three.peer, ENCODING, 2), Verdict.PASSED, now, Random(1))
        one.membership.audits.note(HeldShard(four.peer, ENCODING, 3), Verdict.LATE, now, Random(1))
        assert one.membership.counted(ENCODING) == {0: [one.peer], 1: [two.peer], 2: [three.peer]}
        one.membership.blame(three.peer, shard_text(ENCODING, 2), "noise")
        assert one.membership.counted(ENCODING) == {0: [one.peer], 1: [two.peer]}
        assert two.membership.counted(ENCODING) == {1: [two.peer]}, "each node trusts its own audits alone"


async def test_banned_peers_and_bad_shards_are_left_out_of_holders() -> None:
    async with Nodes() as nodes:
        one, two = await nodes.swarm(2)
        await two.membership.put_holding(model_of(1), [Held(0, ENCODING, [1, 2])], [])
        await until(lambda: len(one.membership.holders(ENCODING)) == 2, 3, "known")
        from node.swarm.reputation import shard_text

        one.membership.blame(two.peer, shard_text(ENCODING, 1), "leaf 3 doesn't hash")
        assert one.membership.holders(ENCODING) == {2: [two.peer]}
        assert one.membership.set_aside(ENCODING, 1, two.peer)
        one.membership.blame(two.peer, "a", "noise")
        one.membership.blame(two.peer, "b", "noise")
        assert one.membership.banned(two.peer)
        assert one.membership.holders(ENCODING) == {}
        assert [entry["shard"] for entry in one.membership.blamed()] == [shard_text(ENCODING, 1), "a", "b"]


async def test_a_node_finds_its_place_among_others_tells_it_and_remembers_whom_it_knows() -> None:
    async with Nodes() as nodes:
        three = await nodes.swarm(3)
        await until(lambda: all(len(routable(node)) == 2 for node in three), 5, "full mesh")
        await asyncio.sleep(90)
        for node in three:
            await node.membership.put_node(10, None, 20)
        one, two = three[:2]

        def told() -> bool:
            view = one.membership.peer(two.peer)
            return view is not None and view.record is not None and view.record.coordinate is not None

        await until(told, 5, "the other's coordinate")
        view = one.membership.peer(two.peer)
        assert view is not None
        assert view.record is not None
        assert (view.record.storage, view.record.storage_free) == (20, 10)
        there = coordinate_from(view.record.coordinate or [])
        assert there.error < 1.0
        assert view.rtt is not None
        assert view.distance == view.rtt
        assert 0.3 * view.rtt < one.membership._own.facts.coordinate.distance(there) < 3 * view.rtt
        assert not view.new
        assert view.availability is None
        await one.stop()
        assert one.saved is not None
        assert {entry.peer for entry in one.saved.known or ()} == {node.peer for node in three[1:]}
        assert one.saved.began is not None
