"""Who may store here and read here: the desk's policy, and how its answers cross the network."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.grant_desk import GrantDesk
from node.model_folder import scan
from node.model_manifest import build_manifest
from node.network.interface import Stream
from node.renew_leases import LeaseRenewer
from node.source import GroupSource
from node.store.interface import ShardInfo, ShardKey
from node.transfer.jobs import EncodeGroup, PushShard
from protocol import limits
from protocol.errors import BadInput, Conflict, DeadlineExceeded, Forbidden, MfError, NotFound, PeerFault, StorageFull
from protocol.framing import pack
from protocol.grants import open_grant
from protocol.ids import EncodingId, ModelId, PeerId, digest
from protocol.manifest import model_id
from protocol.messages import GRANT_PROTOCOL, GrantAsk, GrantReply, GrantRequest, reply_frame
from tests.node.verb_fakes import QUOTA, VerbNode, VerbSwarm, small_model, verb_swarm
from tests.support.virtual_time import run_virtual


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[VerbNode, VerbNode, VerbSwarm]]:
    """A publisher and a holder, both lending."""
    async with verb_swarm(2, tmp_path) as swarm:
        yield swarm.nodes[0], swarm.nodes[1], swarm


class Offer:
    """One coded group of a model at its publisher, to ask grants for."""

    def __init__(self, node: VerbNode, model: ModelId, encoding: EncodingId, envelope: bytes, size: int) -> None:
        self.node, self.model, self.encoding, self.envelope, self.size = node, model, encoding, envelope, size

    def put(self, shard: int = 0, **changes: Any) -> GrantRequest:
        fields = {"encoding": self.encoding, "shards": [shard], "model": self.model, "envelope": self.envelope}
        return GrantRequest(verb="put", **(fields | changes))


async def offer(node: VerbNode, path: Path, length: int | None = None) -> Offer:
    folder = scan(path)
    manifest, data = build_manifest(folder, lambda done, total: None)
    await node.transfer.put_blob(data)
    entry = manifest.groups[1]
    with GroupSource(folder, manifest) as source:
        spans, fds = source.spans(1)
        job = EncodeGroup(
            model=model_id(data), group=1, group_id=entry.id, length=entry.length, spans=spans, k=2, n=4, compression="raw", element=2
        )
        done = await node.transfer.encode_group(job, fds)
    return Offer(node, model_id(data), EncodingId(done.encoding), done.envelope, done.shard_bytes)


async def test_a_put_is_granted_to_a_member_and_the_manifest_is_pulled(pair: tuple[VerbNode, VerbNode, VerbSwarm], tmp_path: Path) -> None:
    mine, other, _swarm = pair
    wanted = await offer(mine, small_model(tmp_path / "m"))
    reply = await mine.book.to_put(other.peer, wanted.encoding, wanted.envelope, 3, wanted.model)
    grant = open_grant(reply.grant, other.peer, time.time())
    assert (grant.verb, grant.client, grant.shards) == ("put", mine.peer, [3])
    assert grant.max_bytes > wanted.size
    assert await other.transfer.get_blob(wanted.model) is not None
    assert await other.transfer.get_blob(wanted.encoding) == wanted.envelope


@pytest.mark.parametrize("lend", ["none", "compute"])
async def test_who_lends_no_storage_takes_nothing(tmp_path: Path, lend: str) -> None:
    async with verb_swarm(1, tmp_path) as swarm:
        other = await swarm.add(tmp_path, lend=lend)
        wanted = await offer(swarm.nodes[0], small_model(tmp_path / "m"))
        with pytest.raises(Forbidden, match="lends no storage"):
            await swarm.nodes[0].book.to_put(other.peer, wanted.encoding, wanted.envelope, 0, wanted.model)
        assert other.transfer.store.space().used == 0


async def test_strangers_get_a_quarter_members_get_the_rest(pair: tuple[VerbNode, VerbNode, VerbSwarm], tmp_path: Path) -> None:
    mine, other, _swarm = pair
    wanted = await offer(mine, small_model(tmp_path / "m"))
    other.swarm.trust_all = False
    stored = ShardInfo(ShardKey(EncodingId(bytes(32)), 0), ModelId(bytes(32)), 0, QUOTA // 4 - wanted.size, 0.0, "a stranger")

    async def lying(model: ModelId | None = None) -> list[ShardInfo]:
        return [stored]

    other.transfer.list_shards = lying  # type: ignore[method-assign]
    with pytest.raises(StorageFull, match="strangers"):
        await other.desk.decide(wanted.put(), mine.peer)
    stored = replace(stored, bytes=stored.bytes - 4096)
    await other.desk.decide(wanted.put(), mine.peer)
    stored = replace(stored, bytes=QUOTA // 2)
    other.swarm.trust(mine.peer)
    await other.desk.decide(wanted.put(), mine.peer)


async def test_more_than_is_lent_is_refused_with_numbers(tmp_path: Path) -> None:
    async with verb_swarm(1, tmp_path) as swarm:
        other = await swarm.add(tmp_path, quota=1000)
        wanted = await offer(swarm.nodes[0], small_model(tmp_path / "m"))
        with pytest.raises(StorageFull, match="1000 of 1000 bytes lent are left"):
            await swarm.nodes[0].book.to_put(other.peer, wanted.encoding, wanted.envelope, 0, wanted.model)
        assert other.transfer.store.space().used == 0


async def test_one_shard_of_a_group_lies_on_one_node(pair: tuple[VerbNode, VerbNode, VerbSwarm], tmp_path: Path) -> None:
    mine, other, _swarm = pair
    wanted = await offer(mine, small_model(tmp_path / "m"))
    with pytest.raises(Conflict, match="at most one shard"):
        await other.desk.decide(wanted.put(shards=[0, 1]), mine.peer)
    await other.desk.decide(wanted.put(0), mine.peer)
    data = mine.transfer.staged[wanted.encoding][0]
    await other.transfer._take(ShardKey(wanted.encoding, 0), wanted.model, 1, mine.peer, data)
    await other.desk.decide(wanted.put(0), mine.peer)
    with pytest.raises(Conflict, match="at most one shard"):
        await other.desk.decide(wanted.put(1), mine.peer)
    with pytest.raises(Conflict, match="another node put"):
        await other.desk.decide(wanted.put(0), other.peer)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"envelope": b"something else"}, "isn't the encoding"),
        ({"envelope": None}, "carries the encoding's envelope"),
        ({"model": None}, "carries the encoding's envelope"),
        ({"model": b"short"}, "carries the encoding's envelope"),
        ({"shards": [4]}, "commits to 4 shards"),
        ({"shards": []}, "shards 1 to 256"),
        ({"shards": [1, 1]}, "distinct"),
        ({"shards": [-1]}, "below 256"),
        ({"shards": [256]}, "below 256"),
        ({"encoding": b"short"}, "32 bytes"),
        ({"verb": "take"}, "get, put, drop, renew and share"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused(
    pair: tuple[VerbNode, VerbNode, VerbSwarm], tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    mine, other, _swarm = pair
    wanted = await offer(mine, small_model(tmp_path / "m"))
    fields = {"verb": "put", "encoding": wanted.encoding, "shards": [0], "model": wanted.model, "envelope": wanted.envelope}
    with pytest.raises(BadInput, match=why):
        await other.desk.decide(GrantRequest(**(fields | changes)), mine.peer)  # type: ignore[arg-type]
    assert other.transfer.store.space().used == 0


async def test_an_encoding_of_another_model_is_refused_and_leaves_nothing(
    pair: tuple[VerbNode, VerbNode, VerbSwarm], tmp_path: Path
) -> None:
    mine, other, _swarm = pair
    wanted = await offer(mine, small_model(tmp_path / "m"))
    strange = await offer(mine, small_model(tmp_path / "n", seed=9, layers=1))
    with pytest.raises(BadInput, match="a group the model doesn't have"):
        await mine.book.to_put(other.peer, wanted.encoding, wanted.envelope, 0, strange.model)
    assert other.transfer.store.space().used == 0


async def test_reading_is_granted_for_what_lies_here(pair: tuple[VerbNode, VerbNode, VerbSwarm], tmp_path: Path) -> None:
    mine, other, _swarm = pair
    done = await mine.publish(small_model(tmp_path / "m"), k=1, n=2)
    assert done["durable"] == done["shards"]
    info = other.transfer.store.list_shards()[0]
    reply = await mine.book.to_get(other.peer, info.key.encoding, [0, 1])
    assert reply.held == [info.key.shard]
    with pytest.raises(NotFound):
        await mine.book.to_get(other.peer, EncodingId(bytes(32)), [0])
    own = mine.transfer.store.list_shards()[0]
    assert (await mine.book.to_get(mine.peer, own.key.encoding, [own.key.shard])).held == [own.key.shard]


async def test_only_who_put_a_shard_takes_it_back(pair: tuple[VerbNode, VerbNode, VerbSwarm], tmp_path: Path) -> None:
    mine, other, swarm = pair
    await mine.publish(small_model(tmp_path / "m"), k=1, n=2)
    third = await swarm.add(tmp_path)
    info = other.transfer.store.list_shards()[0]
    told: list[ModelId] = []
    other.keeper.changed = told.append  # type: ignore[method-assign]
    await third.book.to_drop(other.peer, info.key.encoding, info.key.shard)
    assert other.transfer.store.has(info.key)
    assert not told
    await mine.book.to_drop(other.peer, info.key.encoding, info.key.shard)
    assert not other.transfer.store.has(info.key)
    assert told == [info.model]


async def test_who_brought_somebody_elses_shard_may_take_it_back_and_so_may_whose_it_is(tmp_path: Path) -> None:
    async with verb_swarm(4, tmp_path) as swarm:
        publisher, bringer, holder, third = swarm.nodes
        wanted = await offer(publisher, small_model(tmp_path / "m"))
        await bringer.transfer.put_blob(await publisher.transfer.get_blob(wanted.model) or b"")
        staged = publisher.transfer.staged[wanted.encoding]
        for taker in (bringer, publisher):
            bringer.transfer.staged[wanted.encoding] = list(staged)
            reply = await bringer.book.to_put(holder.peer, wanted.encoding, wanted.envelope, 1, wanted.model)
            push = PushShard(encoding=wanted.encoding, shard=1, peer=holder.peer, urls=reply.urls, tls=reply.tls, grant=reply.grant)
            await bringer.transfer.push_shard(push)
            (info,) = holder.transfer.store.list_shards()
            assert info.owner == publisher.peer
            await third.book.to_drop(holder.peer, wanted.encoding, 1)
            assert holder.transfer.store.list_shards() == [info]
            await taker.book.to_drop(holder.peer, wanted.encoding, 1)
            assert holder.transfer.store.list_shards() == []


async def test_only_who_put_a_shard_renews_its_lease(pair: tuple[VerbNode, VerbNode, VerbSwarm], tmp_path: Path) -> None:
    mine, other, swarm = pair
    await mine.publish(small_model(tmp_path / "m"), k=1, n=2)
    third = await swarm.add(tmp_path)
    await swarm.tell()
    before = other.transfer.store.renewed()
    info = other.transfer.store.list_shards()[0]
    with pytest.raises(NotFound, match="put here by you"):
        await third.book.to_renew(other.peer, [GrantAsk(info.key.encoding, [info.key.shard])])
    await LeaseRenewer(third.peer, third.swarm, third.book).round()
    assert other.transfer.store.renewed() == before
    await LeaseRenewer(mine.peer, mine.swarm, mine.book).round()
    after = other.transfer.store.renewed()
    assert after.keys() == before.keys()
    assert all(after[key] > before[key] for key in before)


async def test_a_stream_goes_on_after_a_refusal(pair: tuple[VerbNode, VerbNode, VerbSwarm]) -> None:
    mine, other, _swarm = pair
    stream = await mine.network.open(other.peer, GRANT_PROTOCOL)
    for frame in (b"nonsense", pack(GrantRequest(verb="get", encoding=bytes(32), shards=[0])), pack({"verb": 7})):
        await stream.send(frame)
        assert (await stream.receive(2.0))[:1] == b"\x01"


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\x02",
        b"\x00nonsense",
        reply_frame(GrantReply(grant=b"", urls=[], tls=bytes(32))),
        reply_frame(GrantReply(grant=b"", urls=["http://127.0.0.1:1"], tls=bytes(32))),
        reply_frame(GrantReply(grant=b"", urls=["https://127.0.0.1:1"], tls=b"short")),
    ],
)
async def test_a_nonsense_answer_is_the_peers_fault(pair: tuple[VerbNode, VerbNode, VerbSwarm], reply: bytes) -> None:
    mine, other, _swarm = pair

    async def nonsense(stream: Stream) -> None:
        await stream.receive(5.0)
        await stream.send(reply)

    other.network.serve(GRANT_PROTOCOL, nonsense)
    with pytest.raises(PeerFault, match=other.peer):
        await mine.book.to_get(other.peer, EncodingId(bytes(32)), [0])


def test_a_frozen_holder_is_given_up_and_suspected(tmp_path: Path) -> None:
    async def main() -> None:
        async with verb_swarm(2, tmp_path) as swarm:
            mine, other = swarm.nodes
            swarm.hub.freeze(other.peer)
            with pytest.raises(DeadlineExceeded):
                await mine.book.to_get(other.peer, EncodingId(bytes(32)), [0])
            assert mine.swarm.suspects == [other.peer]
            swarm.hub.thaw(other.peer)
            with pytest.raises(NotFound):
                await mine.book.to_get(other.peer, EncodingId(bytes(32)), [0])

    run_virtual(main())


async def test_a_refusal_keeps_its_class(pair: tuple[VerbNode, VerbNode, VerbSwarm]) -> None:
    mine, other, _swarm = pair

    async def decide(request: GrantRequest, client: str) -> GrantReply:
        raise MfError("no")

    other.desk.decide = decide  # type: ignore[method-assign]
    with pytest.raises(MfError, match="no"):
        await mine.book.to_get(other.peer, EncodingId(bytes(32)), [0])


@pytest.mark.parametrize(
    ("encodings", "shards", "refused"),
    [
        (limits.MAX_GRANTS_ASKED, 1, "verb"),
        (limits.MAX_GRANTS_ASKED + 1, 1, "more encodings"),
        (limits.MAX_SHARDS_ASKED // limits.MAX_SHARDS - 1, limits.MAX_SHARDS, "verb"),
        (limits.MAX_SHARDS_ASKED // limits.MAX_SHARDS, limits.MAX_SHARDS, "shards may be asked"),
    ],
)
async def test_how_much_may_be_asked_at_once(encodings: int, shards: int, refused: str) -> None:
    """Refused before anything is looked up: no store, no swarm is needed to say so."""
    desk = object.__new__(GrantDesk)
    also = [GrantAsk(digest(b"%d" % number), list(range(shards))) for number in range(encodings)]
    with pytest.raises(BadInput, match=refused):
        await desk.decide(GrantRequest(verb="none such", encoding=bytes(32), shards=list(range(shards)), also=also), PeerId("p"))
