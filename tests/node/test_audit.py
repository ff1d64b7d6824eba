"""Audits over the in-memory network: who is named, who is accused, what counts, and what hostile peers can't do to either side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from erasure.audit import FIRST_WITHIN, RETRY, STEPS, Verdict
from node.audit import Auditor
from node.audit_desk import BURST, MAX_PINGS, SHOW_WITHIN, WALKS, AuditDesk
from node.audit_exchange import WALK_WITHIN, Finding, _in_time
from node.network.interface import Stream, StreamClosed
from protocol import limits
from protocol.audits import AuditLeaves, AuditTags, open_leaves, open_tags, proven_fault, seal_leaves, seal_tags
from protocol.encoding import leaf_count, leaf_digests
from protocol.errors import BadInput, Busy, MfError
from protocol.framing import pack, unpack
from protocol.ids import PeerId
from protocol.messages import AUDIT_PROTOCOL, AuditReply, AuditRequest, AuditTarget, parse_reply, reply_frame
from tests.node.audit_world import ENCODING, Coded, Fetching, Honest, Noise, OtherShard, TagsFirst, World, key_of
from tests.node.verb_fakes import small_model, verb_swarm
from tests.support.virtual_time import run_virtual

K, N = 2, 6
CODED = Coded.of(7, K, N, 16)
"""Shards of 4 MiB."""
NONCE = bytes(range(32))


async def one_pass(auditor: Auditor) -> list[Finding]:
    """What is newly announced comes to its turn within FIRST_WITHIN."""
    await auditor.round()
    await asyncio.sleep(FIRST_WITHIN)
    return await auditor.round()


def on_world(body: Callable[[World], Awaitable[None]], coded: Coded = CODED, **options: Any) -> None:
    async def run() -> None:
        world = await World(coded, 1, **options).start()
        await body(world)
        await world.stop()

    run_virtual(run())


def test_one_pass_names_every_liar_and_faker_of_a_group() -> None:
    """n - k of them, each another kind; who holds its shard counts, wrong bytes are blamed and proven to anyone."""

    async def body(world: World) -> None:
        for shard in range(K):
            await world.add(shard, Honest(CODED.store(shard)))
        await world.add(2, Noise(CODED))
        await world.add(3, OtherShard(CODED))
        await world.add(4, Honest(CODED.store()))
        await world.add(5, Fetching(CODED, world.to_accomplice(5)))
        auditor = world.auditor()
        findings = await one_pass(auditor)
        named = {finding.held.shard: finding.verdict for finding in findings}
        V = Verdict
        assert named == {0: V.PASSED, 1: V.PASSED, 2: V.WRONG, 3: V.WRONG, 4: V.MISSING, 5: V.LATE}
        assert world.swarm.counted(ENCODING) == {shard: [world.peers[shard]] for shard in range(K)}
        assert {line["peer_id"] for line in world.swarm.blamed()} == {world.peers[2], world.peers[3]}
        uncounted = world.swarm.audits.uncounted(world.swarm.clock())
        assert {held.shard: verdict for held, verdict in uncounted} == {shard: named[shard] for shard in range(K, N)}
        for evidence in auditor.evidence:
            proven = proven_fault(
                evidence.tags, evidence.leaves, {ENCODING: CODED.record}, evidence.step, evidence.true_list, evidence.leaf
            )
            assert proven == next(finding.reason for finding in findings if finding.held == evidence.held)
        assert len(auditor.evidence) == 2

    on_world(body)


@pytest.mark.parametrize("kind", ["noise", "other", "missing", "fetching", "tags"])
def test_one_pass_names_a_group_full_of_one_kind(kind: str) -> None:
    async def body(world: World) -> None:
        make: dict[str, Callable[[int], Any]] = {
            "noise": lambda shard: Noise(CODED),
            "other": lambda shard: OtherShard(CODED),
            "missing": lambda shard: Honest(CODED.store()),
            "fetching": lambda shard: Fetching(CODED, world.to_accomplice(shard)),
            "tags": lambda shard: TagsFirst(CODED),
        }
        for shard in range(N):
            await world.add(shard, Honest(CODED.store(shard)) if shard < K else make[kind](shard))
        findings = await one_pass(world.auditor())
        assert {finding.held.shard for finding in findings if finding.verdict is not Verdict.PASSED} == set(range(K, N))
        assert sorted(world.swarm.counted(ENCODING)) == list(range(K))
        accused = {line["peer_id"] for line in world.swarm.blamed()}
        assert accused == ({world.peers[shard] for shard in range(K, N)} if kind in ("noise", "other", "tags") else set())

    on_world(body)


def test_tags_of_nothing_are_a_fault_though_the_leaves_shown_are_right() -> None:
    async def body(world: World) -> None:
        await world.add(0, TagsFirst(CODED))
        auditor = world.auditor()
        (finding,) = await one_pass(auditor)
        assert finding.verdict is Verdict.WRONG
        assert "tag" in finding.reason
        (evidence,) = auditor.evidence
        assert proven_fault(evidence.tags, evidence.leaves, {ENCODING: CODED.record}, evidence.step, evidence.true_list, evidence.leaf)
        assert proven_fault(evidence.tags, evidence.leaves, {ENCODING: CODED.record}, evidence.step, evidence.true_list) is None

    on_world(body)


def test_frozen_gone_and_silent_peers_are_unknown_and_keep_nobody_waiting() -> None:
    async def body(world: World) -> None:
        frozen = await world.add(0, Honest(CODED.store(0)))
        await world.add(1, Honest(CODED.store(1)))
        await world.add(2)
        killed = await world.add(3, Honest(CODED.store(3)))
        auditor = world.auditor()
        await auditor.round()
        await asyncio.sleep(FIRST_WITHIN)
        world.hub.freeze(frozen)
        world.hub.kill(killed)
        began = world.swarm.clock()
        found = {finding.held.shard: finding.verdict for finding in await auditor.round()}
        assert found == {0: Verdict.UNKNOWN, 1: Verdict.PASSED, 2: Verdict.UNKNOWN, 3: Verdict.UNKNOWN}
        assert world.swarm.clock() - began < WALK_WITHIN
        assert sorted(world.swarm.counted(ENCODING)) == [1]
        assert not world.swarm.blamed()

    on_world(body)


def test_one_that_freezes_in_the_walk_is_unknown_at_its_deadline() -> None:
    class Freezing(Honest):
        async def audit_walk(self, *asked: Any) -> Any:
            await asyncio.sleep(3_600)

    async def body(world: World) -> None:
        await world.add(0, Freezing(CODED.store(0)))
        began = world.swarm.clock()
        (finding,) = await one_pass(world.auditor())
        assert finding.verdict is Verdict.UNKNOWN
        assert world.swarm.clock() - began < FIRST_WITHIN + WALK_WITHIN + 1.0

    on_world(body)


def test_a_late_answer_leaves_a_shard_counted_and_two_do_not() -> None:
    class Slow(Honest):
        slow = False

        async def audit_walk(self, *asked: Any) -> Any:
            await asyncio.sleep(2.0 if self.slow else 0.0)
            return await super().audit_walk(*asked)

    async def body(world: World) -> None:
        transfer = Slow(CODED.store(0))
        peer = await world.add(0, transfer)
        auditor, said = world.auditor(), []
        await one_pass(auditor)
        for slow in (True, True, False, False):
            transfer.slow = slow
            await asyncio.sleep(8_000.0)
            (finding,) = await auditor.round()
            said.append((finding.verdict, bool(world.swarm.counted(ENCODING))))
        L, P = Verdict.LATE, Verdict.PASSED
        assert said == [(L, True), (L, False), (P, False), (P, True)]
        assert not world.swarm.blamed()
        assert world.swarm.audits.speeds.step(peer) < 0.02

    on_world(body)


def test_who_is_late_is_asked_again_soon_and_who_passes_later_and_later() -> None:
    async def body(world: World) -> None:
        await world.add(0, Honest(CODED.store(0)))
        await world.add(1, Fetching(CODED, world.to_accomplice(1)))
        auditor = world.auditor()
        await one_pass(auditor)
        await asyncio.sleep(2 * RETRY)
        assert [finding.held.shard for finding in await auditor.round()] == [1]
        await asyncio.sleep(900)
        assert sorted(finding.held.shard for finding in await auditor.round()) == [0, 1]

    on_world(body)


def test_what_a_publisher_put_counts_for_it_at_once_and_for_others_after_an_audit(tmp_path: Path) -> None:
    async def body() -> None:
        async with verb_swarm(4, tmp_path) as swarm:
            loop = asyncio.get_running_loop()
            for node in swarm.nodes:
                node.swarm.clock = node.auditor._clock = loop.time
            mine, other, third, _ = swarm.nodes
            done = await mine.publish(small_model(tmp_path / "m"), name="little", k=2, n=4)
            await swarm.tell()
            assert done["survives_losses"] == 2
            assert (await mine.reporter.models())[0].storage["survives_losses"] == 2
            assert (await other.reporter.models())[0].storage["survives_losses"] == -1, "its own shard alone"
            lost = next(info.key for info in third.transfer.store.list_shards())
            third.transfer.store.drop_shard(lost, "lost, and still announced")
            findings = await one_pass(other.auditor)
            assert {(finding.held.peer, finding.verdict) for finding in findings if finding.verdict is not Verdict.PASSED} == {
                (third.peer, Verdict.MISSING)
            }
            assert (await other.reporter.models())[0].storage["survives_losses"] == 1

    run_virtual(body())


def test_a_shard_gone_bad_on_an_honest_disk_is_said_to_be_missing_and_dropped() -> None:
    async def body(world: World) -> None:
        store = CODED.store(0, 1)
        key = store.list_shards()[0].key
        info, leaves, data = store._shards[key]
        store._shards[key] = (info, leaves, bytes(len(data)))
        await world.add(0, Honest(store))
        (finding,) = await one_pass(world.auditor())
        assert finding.verdict is Verdict.MISSING
        assert [left.key.shard for left in store.list_shards()] == [1]
        assert not world.swarm.blamed()

    on_world(body)


def test_a_node_that_was_slow_itself_says_nothing_of_the_peer() -> None:
    assert _in_time(0.5, 0.6, 0.0)[0] is Verdict.PASSED
    assert _in_time(0.7, 0.6, 0.05)[0] is Verdict.LATE
    assert _in_time(0.7, 0.6, 0.15)[0] is Verdict.UNKNOWN


# Hostile answers.


def replayed(tags: AuditTags) -> dict[str, AuditTags]:
    change = msgspec.structs.replace
    return {
        "another nonce": change(tags, nonce=NONCE),
        "another auditor": change(tags, auditor="somebody"),
        "another target": change(tags, targets=[AuditTarget(ENCODING, 3)]),
        "fewer tags": change(tags, tags=tags.tags[:-32]),
        "too many tags": change(tags, tags=bytes(32 * (limits.MAX_AUDIT_STEPS + 1))),
        "half a tag": change(tags, tags=tags.tags[:-1]),
        "missing beyond": change(tags, missing=[1]),
        "missing and tags": change(tags, missing=[0]),
        "no tags, nothing missing": change(tags, tags=b""),
    }


def shown_otherwise(leaves: AuditLeaves) -> dict[str, AuditLeaves]:
    change = msgspec.structs.replace
    return {
        "another nonce": change(leaves, nonce=NONCE),
        "other steps": change(leaves, shown=[(step + 1) % STEPS for step in leaves.shown]),
        "digests short": change(leaves, digests=leaves.digests[:-32]),
        "no roots": change(leaves, roots=b""),
        "roots too many": change(leaves, roots=bytes(32 * 9)),
        "no steps": change(leaves, shown=[], digests=b""),
    }


class Twisted:
    """Between an honest desk and the auditor: `twist` gets each frame sent and its number, and gives the frames to send instead."""

    def __init__(self, stream: Stream, twist: Callable[[int, bytes], list[bytes]]) -> None:
        self._stream, self._twist, self._sent = stream, twist, 0

    @property
    def peer(self) -> PeerId:
        return self._stream.peer

    async def receive(self, timeout: float) -> bytes:
        return await self._stream.receive(timeout)

    async def send(self, frame: bytes, timeout: float = 5.0) -> None:
        self._sent += 1
        for other in self._twist(self._sent, frame):
            await self._stream.send(other, timeout)


TAGS_FRAME, LEAVES_FRAME, LIST_FRAME = 4, 5, 6
"""After three pongs."""


def twisted(at: int, make: Callable[[bytes], list[bytes]]) -> Callable[[int, bytes], list[bytes]]:
    return lambda number, frame: make(frame) if number == at else [frame]


def judged(twist: Callable[[int, bytes], list[bytes]]) -> Finding:
    found: list[Finding] = []

    async def body(world: World) -> None:
        await world.add(0)
        network = world.networks[0]
        desk = AuditDesk(key_of(1), Honest(CODED.store(0)), world.swarm.clock)  # type: ignore[arg-type]

        async def handle(stream: Stream) -> None:
            await desk.handle(Twisted(stream, twist))  # type: ignore[arg-type]

        network.serve(AUDIT_PROTOCOL, handle)
        found.extend(await one_pass(world.auditor()))
        assert not world.swarm.blamed()
        assert not world.swarm.counted(ENCODING)

    on_world(body)
    (finding,) = found
    return finding


def signed_of(frame: bytes) -> bytes:
    return parse_reply(frame, AuditReply, "reply").signed or b""


def answer(signed: bytes | None) -> list[bytes]:
    return [reply_frame(AuditReply(signed=signed))]


@pytest.mark.parametrize("name", [*replayed(AuditTags(auditor="", nonce=NONCE, targets=[], tags=b""))])
def test_tags_that_answer_another_question_are_nonsense(name: str) -> None:
    def make(frame: bytes) -> list[bytes]:
        tags = unpack(unpack(signed_of(frame), dict, "envelope")["body"], AuditTags, "tags")
        return answer(seal_tags(key_of(1), replayed(tags)[name]))

    assert judged(twisted(TAGS_FRAME, make)).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("name", [*shown_otherwise(AuditLeaves(auditor="", nonce=NONCE, shown=[0], roots=NONCE, digests=NONCE))])
def test_leaves_of_another_audit_are_nonsense(name: str) -> None:
    def make(frame: bytes) -> list[bytes]:
        leaves = unpack(unpack(signed_of(frame), dict, "envelope")["body"], AuditLeaves, "leaves")
        return answer(seal_leaves(key_of(1), shown_otherwise(leaves)[name]))

    assert judged(twisted(LEAVES_FRAME, make)).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("at", "make"),
    [
        (1, lambda frame: [b"\x07"]),
        (1, lambda frame: [b"\x01" + pack({"code": "busy", "message": "no"})]),
        (TAGS_FRAME, lambda frame: [b""]),
        (TAGS_FRAME, lambda frame: answer(None)),
        (TAGS_FRAME, lambda frame: answer(b"\xc1" * 1000)),
        (TAGS_FRAME, lambda frame: answer(seal_tags(key_of(5), open_tags(signed_of(frame))[1]))),
        (LEAVES_FRAME, lambda frame: []),
        (LEAVES_FRAME, lambda frame: answer(seal_leaves(key_of(5), open_leaves(signed_of(frame))[1]))),
        (LIST_FRAME, lambda frame: [frame[:-1] + bytes([frame[-1] ^ 1])]),
        (LIST_FRAME, lambda frame: [frame + b"x"]),
        (LIST_FRAME, lambda frame: [b""]),
        (LIST_FRAME + 1, lambda frame: [b"\x00" + frame[1:]] if frame[0] else [b"\x01" + frame[1:]]),
        (LIST_FRAME + 1, lambda frame: [frame + b"x"]),
        (LIST_FRAME + 1, lambda frame: [bytes(limits.MAX_FRAME)]),
    ],
)
def test_nonsense_at_any_point_is_unknown_and_no_fault(at: int, make: Callable[[bytes], list[bytes]]) -> None:
    assert judged(twisted(at, make)).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("code", ["not_found", "forbidden"])
def test_who_refuses_to_walk_is_missing(code: str) -> None:
    refuse = twisted(TAGS_FRAME, lambda frame: [b"\x01" + pack({"code": code, "message": "no"})])
    assert judged(refuse).verdict is Verdict.MISSING


# Hostile questions.

TARGET = AuditTarget(ENCODING, 0)
WALK = AuditRequest(verb="walk", nonce=NONCE, targets=[TARGET], steps=STEPS)
REFUSED: list[tuple[Any, str]] = [
    ({"verb": "steal"}, "verb"),
    ({"verb": "walk"}, "nonce"),
    ({"nonce": NONCE[:31]}, "nonce"),
    ({"targets": []}, "targets"),
    ({"targets": [TARGET, TARGET]}, "targets"),
    ({"targets": [AuditTarget(ENCODING, shard) for shard in range(limits.MAX_AUDIT_TARGETS + 1)]}, "targets"),
    ({"targets": [AuditTarget(ENCODING, limits.MAX_SHARDS)]}, "shard below"),
    ({"targets": [AuditTarget(ENCODING, -1)]}, "shard below"),
    ({"targets": [AuditTarget(b"short", 0)]}, "32 bytes"),
    ({"steps": limits.MAX_AUDIT_STEPS + 1}, "steps"),
    ({"steps": 0}, "steps"),
    ({"steps": -1}, "steps"),
    ({"targets": [TARGET, AuditTarget(ENCODING, 1)], "steps": 1}, "steps"),
    ({"verb": "show", "show": [0]}, "follows a walk"),
]


def at_desk(body: Callable[[Stream, World], Awaitable[None]], transfer: Any = None) -> None:
    async def run(world: World) -> None:
        peer = await world.add(0, transfer or Honest(CODED.store(0)))
        await body(await world.network.open(peer, AUDIT_PROTOCOL), world)

    on_world(run)


async def say(stream: Stream, request: AuditRequest | bytes) -> AuditReply:
    await stream.send(request if isinstance(request, bytes) else pack(request))
    return parse_reply(await stream.receive(10.0), AuditReply, "reply")


async def stream_reply(stream: Stream) -> bytes:
    """The answer to one more walk."""
    await stream.send(pack(WALK))
    return await stream.receive(10.0)


def test_questions_out_of_bounds_are_refused_by_name_and_the_next_is_answered() -> None:
    async def body(stream: Stream, world: World) -> None:
        for changes, rule in REFUSED:
            whole = "verb" not in changes
            asked = msgspec.structs.replace(WALK, **changes) if whole else AuditRequest(**changes)
            with pytest.raises(BadInput, match=rule):
                await say(stream, asked)
        for frame in (b"", b"\xc1", b"\x81\xa1a" * 100, pack({"verb": 1}), pack([1])):
            with pytest.raises(BadInput):
                await say(stream, frame)
        assert (await say(stream, WALK)).signed

    at_desk(body)


def test_a_show_is_bounded_and_answered_once() -> None:
    async def body(stream: Stream, world: World) -> None:
        for show in ([], [STEPS], [-1], [0, 0], list(range(limits.MAX_AUDIT_SHOWN + 1))):
            await say(stream, WALK)
            with pytest.raises(BadInput):
                await say(stream, AuditRequest(verb="show", show=show))
        await say(stream, WALK)
        most = list(range(limits.MAX_AUDIT_SHOWN))
        signed = (await say(stream, AuditRequest(verb="show", show=most))).signed
        assert open_leaves(signed or b"")[1].shown == most
        listed = await stream.receive(5.0)
        assert listed == b"".join(leaf_digests(CODED.shards[0]))
        assert len(listed) == 32 * leaf_count(len(CODED.shards[0]))
        leaves = [await stream.receive(5.0) for _ in most]
        assert all(leaf in CODED.shards[0] for leaf in leaves)
        with pytest.raises(BadInput, match="once"):
            await say(stream, AuditRequest(verb="show", show=[0]))

    at_desk(body)


def test_walks_and_pings_are_rate_limited_by_peer() -> None:
    async def body(stream: Stream, world: World) -> None:
        for _ in range(MAX_PINGS):
            await say(stream, AuditRequest(verb="ping"))
        with pytest.raises(Busy, match="pings"):
            await say(stream, AuditRequest(verb="ping"))
        said = [await stream_reply(stream) for _ in range(100)]
        assert BURST <= sum(frame[:1] == b"\x00" for frame in said) <= BURST + 10
        refused = next(frame for frame in said if frame[:1] == b"\x01")
        with pytest.raises(Busy, match="one peer"):
            parse_reply(refused, AuditReply, "reply")
        await asyncio.sleep(20)
        assert (await say(stream, WALK)).signed

    at_desk(body)


def test_each_peer_has_one_walk_at_a_time_and_all_together_a_few_and_the_rest_is_refused_at_once() -> None:
    async def body(stream: Stream, world: World) -> None:
        streams = [await world.network.open(stream.peer, AUDIT_PROTOCOL) for _ in range(3)]
        for shard in range(1, 6):
            await world.add(shard)
            await world.networks[shard].dial(stream.peer, world.networks[0].addresses())
            streams.append(await world.networks[shard].open(stream.peer, AUDIT_PROTOCOL))
        began = world.swarm.clock()
        said = await asyncio.gather(*(say(one, WALK) for one in streams), return_exceptions=True)
        assert sum(isinstance(one, AuditReply) for one in said) == WALKS
        assert sum(isinstance(one, Busy) for one in said) == len(streams) - WALKS
        assert sum(isinstance(one, AuditReply) for one in said[:3]) == 1
        assert world.swarm.clock() - began < 1.0

    at_desk(body, Honest(CODED.store(0), seek=lambda: 0.02))


def test_who_takes_nothing_of_what_it_asked_to_see_is_cut_off() -> None:
    async def body(stream: Stream, world: World) -> None:
        await say(stream, WALK)
        await stream.send(pack(AuditRequest(verb="show", show=list(range(limits.MAX_AUDIT_SHOWN)))))
        await asyncio.sleep(0.05)
        world.hub.freeze(world.network.peer_id)
        await asyncio.sleep(SHOW_WITHIN + 5)
        world.hub.thaw(world.network.peer_id)
        frames: list[bytes] = []
        with pytest.raises(StreamClosed):
            await take_all(stream, frames)
        assert len(frames) < limits.MAX_AUDIT_SHOWN + 2

    at_desk(body)


async def take_all(stream: Stream, frames: list[bytes]) -> None:
    while True:
        frames.append(await stream.receive(10.0))


def test_a_desk_whose_disk_fails_says_so_and_goes_on() -> None:
    class Broken(Honest):
        fails = True

        async def audit_walk(self, *asked: Any) -> Any:
            if self.fails:
                raise MfError("the disk failed")
            return await super().audit_walk(*asked)

    transfer = Broken(CODED.store(0))

    async def body(stream: Stream, world: World) -> None:
        with pytest.raises(MfError, match="the disk failed"):
            await say(stream, WALK)
        transfer.fails = False
        assert (await say(stream, WALK)).signed

    at_desk(body, transfer)
