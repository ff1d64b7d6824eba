"""What is said on `/mf/swarm/1`: one frame is one `Frame`, a question with a number or its answer.

Each side opens one long-lived stream to the other for its own questions; answers come back on it. `hello` comes first
and may be repeated when a node has joined another private swarm. Number 0 wants no answer.

    hello    Hello     -> Hello      who I am, and proofs of the private swarms' secrets I hold
    ping     Nothing   -> Nothing
    probe    Probe     -> Probed     do you get answers from this peer?
    push     Batch     (no answer)   records that are new to me
    summary  Summary   -> Marks      sums of what I have; marks of what you have where they differ
    fetch    Marks     -> Batch      the records of these marks, as many as fit
"""

from __future__ import annotations

import hmac
from typing import Any, TypeVar

import msgspec
from blake3 import blake3

from node.swarm.archive import BUCKETS
from node.swarm.book import MARK
from protocol import limits
from protocol.errors import BadInput
from protocol.framing import Record, pack, unpack
from protocol.ids import PeerId

T = TypeVar("T")

PROOF_DOMAIN = b"mf/swarm-proof/1"
MAX_SECRETS = 8
MAX_BATCH = 512
"""Records in one frame."""
BATCH_BYTES = 768 * limits.KIB
MAX_MARKS = 32_768


class Frame(Record):
    """`kind` is a question's, or "reply" or "refused"."""

    id: int
    kind: str
    body: dict[str, Any]


class Nothing(Record):
    pass


class Hello(Record):
    boot: bytes
    version: str
    proofs: list[bytes]


class Probe(Record):
    peer: str


class Probed(Record):
    """None: not connected to it, can't say."""

    alive: bool | None = None


class Batch(Record):
    records: list[bytes]


class Summary(Record):
    sums: bytes


class Marks(Record):
    """16 bytes each, joined; `buckets`: those that differ and of which all marks are there; `more`: others differ too, ask again."""

    marks: bytes
    buckets: list[int] | None = None
    more: bool | None = None


def encode(number: int, kind: str, body: Record | dict[str, Any]) -> bytes:
    return pack({"id": number, "kind": kind, "body": body})


def decode(data: bytes) -> Frame:
    frame = unpack(data, Frame, "swarm frame")
    if not 0 <= frame.id < 1 << 53 or len(frame.kind) > 16:
        raise BadInput("swarm frame: id or kind out of range")
    return frame


def body_of(frame: Frame, kind: type[T]) -> T:
    """The typed and bounded body of a frame."""
    try:
        body = msgspec.convert(frame.body, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise BadInput(f"swarm {frame.kind}: {error}") from error
    _check(body)
    return body


def _check(body: object) -> None:
    if isinstance(body, Hello) and (len(body.boot) != 16 or len(body.version) > 64 or len(body.proofs) > MAX_SECRETS):
        raise BadInput("swarm hello: boot has 16 bytes, at most 8 proofs")
    if isinstance(body, Batch) and len(body.records) > MAX_BATCH:
        raise BadInput(f"swarm batch: {len(body.records)} records, at most {MAX_BATCH}")
    if isinstance(body, Summary) and len(body.sums) != BUCKETS * MARK:
        raise BadInput(f"swarm summary: sums have {BUCKETS * MARK} bytes")
    if isinstance(body, Marks) and (len(body.marks) % MARK or len(body.marks) > MAX_MARKS * MARK or len(body.buckets or ()) > BUCKETS):
        raise BadInput("swarm marks: 16 bytes each, at most 32768")


def prove(secret: bytes, prover: PeerId, verifier: PeerId) -> bytes:
    """Shows a private swarm's secret to one peer; of no use to anybody else, since streams authenticate both ends."""
    return blake3(b"\x00".join([PROOF_DOMAIN, prover.encode(), verifier.encode()]), key=secret).digest()


def proves(secrets: list[bytes], proofs: list[bytes], prover: PeerId, verifier: PeerId) -> bool:
    wanted = [prove(secret, prover, verifier) for secret in secrets]
    return any(hmac.compare_digest(one, other) for one in wanted for other in proofs)
