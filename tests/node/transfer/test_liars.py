"""Holders that lie in right framing, at n - k of n: the right bytes come all the same, each that was asked is named, little is wasted.

Then those that give nothing: all but k die in the middle; they accept and stall, trickle, send for ever, close at random.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from node.transfer.decoding import ThreadDecoding
from node.transfer.fetch import GroupFetch
from node.transfer.jobs import FetchGroup
from node.transfer.sink import Sink
from protocol import limits
from protocol.encoding import leaf_digests
from tests.node.transfer.holders import Holder, Node
from tests.node.transfer.test_fetch import K, N, Swarm, coded, executor, swarm  # noqa: F401

LIARS = N - K
WASTE = limits.LEAF + limits.WINDOW_LEAVES * limits.LEAF
"""Bytes that a lie may cost: a leaf and a window."""
WITHIN = 2.0
"""Seconds until who gives nothing has been moved on from."""
SLACK = 3


def lie(holder: Holder, swarm: Swarm, how: str) -> None:  # noqa: F811
    """What it holds is changed; framing and signatures go with what it sends."""
    other = swarm.staging.open(swarm.encoded.encoding, (holder.shard + 1) % N).path.read_bytes()
    old = bytes(byte ^ 0x55 for byte in holder.content[:100_000]) + holder.content[100_000:]
    match how:
        case "wrong data":
            holder.manner = "lies"
        case "another shard":
            holder.content = other
        case "another shard and its list":
            holder.content, holder.leaves = other, b"".join(leaf_digests(other))
        case "an old encoding":
            holder.content = old
        case "an old encoding and its list":
            holder.content, holder.leaves = old, b"".join(leaf_digests(old))
        case "a bit of its list":
            holder.leaves = holder.leaves[:40] + bytes([holder.leaves[40] ^ 1]) + holder.leaves[41:]
        case "a bit at its end":
            holder.content = holder.content[:-1] + bytes([holder.content[-1] ^ 1])


async def fetch(swarm: Swarm, node: Node, tmp_path: Path) -> Counter[str]:  # noqa: F811
    """Bytes received by peer; the group came out right."""
    job = FetchGroup(job="j", envelope=swarm.encoded.envelope, offset=0, sources=[holder.source for holder in swarm.holders])
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    try:
        decoding = ThreadDecoding(swarm.encoded.envelope, Sink.whole(fd), swarm.executor)
        running = GroupFetch(job, decoding, swarm.connections, node.callbacks)
        await running.run()
        assert os.pread(fd, len(swarm.data) + 1, 0) == swarm.data
    finally:
        os.close(fd)
    received: Counter[str] = Counter()
    for reader in [*running._ended, *running._lanes.values()]:
        received[reader.source.peer] += reader.received
    return received


@pytest.mark.parametrize(
    "how",
    [
        "wrong data", "another shard", "another shard and its list", "an old encoding", "an old encoding and its list", "a bit of its list",
    ],
)  # fmt: skip
async def test_liars_at_all_but_k_cost_a_window_each(swarm: Swarm, tmp_path: Path, how: str) -> None:  # noqa: F811
    node = await swarm.hold(*["honest"] * N)
    liars = swarm.holders[:LIARS]
    for holder in liars:
        lie(holder, swarm, how)
    received = await fetch(swarm, node, tmp_path)
    asked = [holder for holder in liars if holder.asked]
    assert {peer for peer, _, _ in node.faults} == {holder.peer for holder in asked}
    assert len(asked) == LIARS
    wasted = sum(received[holder.peer] for holder in asked)
    print(f"{how}: {wasted / len(asked) / limits.LEAF:.1f} leaves wasted for each of {len(asked)} liars")
    assert wasted <= len(asked) * WASTE
    assert sum(received[holder.peer] for holder in swarm.holders[LIARS:]) < 1.01 * len(swarm.data)


async def test_a_lie_at_the_end_is_named_too(swarm: Swarm, tmp_path: Path) -> None:  # noqa: F811
    """What was right before it was used: the waste is the last window's."""
    node = await swarm.hold(*["honest"] * N)
    for holder in swarm.holders[:LIARS]:
        lie(holder, swarm, "a bit at its end")
    received = await fetch(swarm, node, tmp_path)
    assert {peer for peer, _, _ in node.faults} == {holder.peer for holder in swarm.holders[:LIARS]}
    assert received.total() <= 1.01 * len(swarm.data) + LIARS * WASTE


@pytest.mark.parametrize("seed", range(6))
async def test_a_flip_anywhere_on_the_wire_never_reaches_the_decoder(swarm: Swarm, tmp_path: Path, seed: int) -> None:  # noqa: F811
    node, random = await swarm.hold(*["honest"] * N), Random(seed)
    for holder in swarm.holders[:LIARS]:
        at, bit = random.randrange(len(holder.content)), 1 << random.randrange(8)
        holder.content = holder.content[:at] + bytes([holder.content[at] ^ bit]) + holder.content[at + 1 :]
    await fetch(swarm, node, tmp_path)
    assert {peer for peer, _, _ in node.faults} == {holder.peer for holder in swarm.holders[:LIARS] if holder.asked}


async def test_all_but_k_die_in_the_middle(swarm: Swarm, tmp_path: Path) -> None:  # noqa: F811
    node = await swarm.hold(*["dies"] * LIARS, *["honest"] * K, after=1)
    received = await fetch(swarm, node, tmp_path)
    assert sum(holder.asked > 0 for holder in swarm.holders[:LIARS]) == LIARS
    assert node.faults == []
    assert received.total() < 2 * len(swarm.data)


@pytest.mark.parametrize("manner", ["mute", "stalls", "trickles", "endless", "random"])
@pytest.mark.parametrize("after", [0, 1])
async def test_who_gives_nothing_is_moved_on_from(swarm: Swarm, tmp_path: Path, manner: str, after: int) -> None:  # noqa: F811
    """At all n - k holders that are asked first; a quiet fetch takes a tenth of a second."""
    node = await swarm.hold(*[manner] * LIARS, *["honest"] * K, after=after)
    began = time.monotonic()
    await fetch(swarm, node, tmp_path)
    took = time.monotonic() - began
    print(f"{LIARS} that are {manner} after {after} windows: {took:.2f} s")
    assert took < SLACK * WITHIN
