"""What is said on the libp2p streams beside the signed records: grants, blobs, sessions, steps, audits.

Every message is a canonical msgpack map in one frame. A reply is either the message expected or
`Refused`, told apart by the first byte: 0 for a reply, 1 for `Refused`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from protocol import limits
from protocol.errors import BadInput, MfError, error_from_wire
from protocol.framing import Record, pack, unpack, unpack_plain

SWARM_PROTOCOL = "/mf/swarm/1"
BLOB_PROTOCOL = "/mf/blob/1"
GRANT_PROTOCOL = "/mf/grant/1"
SESSION_PROTOCOL = "/mf/session/1"
STEP_PROTOCOL = "/mf/step/1"
DIRECT_PROTOCOL = "/mf/direct/1"
AUDIT_PROTOCOL = "/mf/audit/1"
KAD_PROTOCOL = "/mf/kad/1"

FRAME_LIMITS = {STEP_PROTOCOL: limits.MAX_ACTIVATION_FRAME}
"""Frames of every other protocol are control frames."""

T = TypeVar("T")

Octets = bytes
"""For structs that have a field of the name `bytes`, which hides the type from their other annotations."""


def reply_frame(message: Record) -> bytes:
    return b"\x00" + pack(message)


def refusal_frame(error: MfError) -> bytes:
    return b"\x01" + pack(error.to_wire())


def parse_reply(frame: bytes, kind: type[T], what: str) -> T:
    """The reply, or raises the error the other side sent."""
    if frame[:1] == b"\x01":
        wire = unpack_plain(frame[1:], what)
        raise error_from_wire(wire if isinstance(wire, dict) else {})
    if frame[:1] != b"\x00":
        raise BadInput(f"{what}: a reply begins with 0 or 1")
    return unpack(frame[1:], kind, what)


class GrantAsk(msgspec.Struct, array_like=True, frozen=True):
    """Shards of one more encoding to get."""

    encoding: bytes
    shards: list[int]


class GrantRequest(Record):
    """Asks leave to get or put shards of one encoding. A put carries the encoding's envelope and the model's id.

    A get may ask for more encodings in `also`: a model has many groups, and a question for each would cost more than their bytes.
    """

    verb: str
    encoding: Octets
    shards: list[int]
    model: Octets | None = None
    envelope: Octets | None = None
    bytes: int | None = None
    also: list[GrantAsk] | None = None


class GrantReply(Record):
    """`grant` is the signed envelope; `urls` https://host:port bases; `tls` SHA-256 of the certificate.

    `also` answers the request's in its order, nothing where none of those shards lies there.
    """

    grant: bytes
    urls: list[str]
    tls: bytes
    held: list[int] | None = None
    also: list[bytes | None] | None = None


class BlobRequest(Record):
    ids: list[bytes]


class BlobHead(Record):
    """Then `length` bytes follow in frames of at most 512 KiB; None: not held."""

    id: bytes
    length: int | None = None


class AuditTarget(msgspec.Struct, array_like=True, frozen=True):
    """A shard that the peer asked announces."""

    encoding: bytes
    shard: int


class AuditRequest(Record):
    """One audit is a few of these on one stream, the verb telling them apart: `ping` measures the way there and back, `walk` (with nonce,
    targets, steps) asks for the tags of a walk over leaves, `show` (with the numbers of steps) for the leaves of steps just walked.
    """

    verb: str
    nonce: bytes | None = None
    targets: list[AuditTarget] | None = None
    steps: int | None = None
    show: list[int] | None = None


class AuditReply(Record):
    """To a ping nothing, to the others the signed statement. After a `show` follow the leaf list of each shard shown, in the order of
    targets and in frames of at most 512 KiB, then the leaves in the order asked, a frame each.
    """

    signed: bytes | None = None


class StageSpec(msgspec.Struct, array_like=True, frozen=True):
    """Layers [first, end) run by `peer`. The first stage also embeds, the last also runs the head."""

    peer: str
    first: int
    end: int


class LogitBias(msgspec.Struct, array_like=True, frozen=True):
    """`bias` is added to the token's logit before anything else is done to it."""

    token: int
    bias: float


class Grammar(Record):
    """What a reply must keep to. `kind` "json" (any object), "json_schema", "regex" or "lark"; `text` the schema or pattern."""

    kind: str
    text: str = ""


class Sampling(Record):
    """`seed` None samples from the node's own randomness; temperature 0 is greedy.

    Order: bias, grammar, penalties (over the reply's own tokens), temperature, top_k, top_p, min_p. `logprobs` None gives none, n
    the natural logarithms of the chosen token and of the n likeliest, taken before temperature and cuts.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: list[LogitBias] | None = None
    logprobs: int | None = None
    grammar: Grammar | None = None


class TokenLogprob(msgspec.Struct, array_like=True, frozen=True):
    token: int
    logprob: float


class Checked(msgspec.Struct, array_like=True, frozen=True):
    """Tokens of a reply that an audit looks at, the first of them at `position`."""

    position: int
    tokens: list[int]


class Earlier(msgspec.Struct, array_like=True, frozen=True):
    """A session of the same entry that is over, of which a stage may still have the first `positions`."""

    session: bytes
    positions: int


class OpenSession(Record):
    """Entry to each stage. `tokens_max` is the room to reserve; `new_max` and `stop_tokens` end the reply at the last stage.

    `reply`: the tokens already made where a route is replaced, told to the last stage alone: penalties and grammars go on from them.
    `prints`: the key under which the stage signs prints of its rows (`protocol/prints.py`). `check`, in an audit and to the last
    stage alone: tokens whose gaps it is asked for.
    `resume`: the stage after this one has all positions before it, so that outputs for them needn't be sent. `prepare`: load the layers
    ahead, say "ready", and open nothing. `drafts`: the first stage may guess tokens to be verified on the same way. `score`: the prompt,
    told to the last stage alone where its own tokens' logarithms are asked, as many as `sampling.logprobs` says. `wait`: seconds for which
    the session stays in line where others have the room; 0: it is refused as busy. `begun`: tokens of its reply are made already. `keep`:
    when it is over, what was computed may stay for a session of this entry that names it in `after`; "ready" says how many of those
    positions are there, and the prompt goes on behind the least of all stages. `known`: their token ids, told to the first stage alone.
    """

    session: bytes
    epoch: int
    model: bytes
    stages: list[StageSpec]
    index: int
    entry: str
    tokens_max: int
    new_max: int
    stop_tokens: list[int]
    sampling: Sampling
    precision: str = "bf16"
    reply: list[int] | None = None
    prints: bytes | None = None
    check: Checked | None = None
    resume: int = 0
    prepare: bool = False
    drafts: bool = True
    score: list[int] | None = None
    wait: float = 0.0
    begun: bool = False
    keep: bool = False
    after: Earlier | None = None
    known: list[int] | None = None


class Reroute(Record):
    """Entry to a stage that stays where another one is replaced: the route from now on, under a new epoch that begins at `position`.

    `resume` as in `OpenSession`: where it is below `position`, the stage sends again what it sent before. Answered by "rerouted".
    """

    epoch: int
    stages: list[StageSpec]
    index: int
    position: int
    resume: int


class SessionEvent(Record):
    """What a stage tells the entry on the session's stream.

    `kind`: "loading" (twice a second while it loads or waits for room, `line` then its place there, 1 is next), "ready" (with `timings`,
    seconds), then "alive" twice a second; "rerouted" (with `epoch`) answers a `Reroute`; "leaving" asks for another stage in this one's
    place, since the node is stopping.
    "failed" (with `error`, and in `blames` the peer whose bytes made no sense) ends the session. "alive" with `error` and `blames` tells of
    the peer to which a step can't be brought: the session waits for a `Reroute` with all that it has.

    `position`: all before it are computed (of "ready": there from the session named in `after`); `busy`: a step is being computed now;
    `pace`: seconds of computing for one token, and per token of a prompt (0: none yet). `prints`: signed statements of rows computed since
    the event before. `moved`: bytes [sent, received] by the stage for this session so far, weights it had to fetch included.
    """

    kind: str
    error: dict[str, Any] | None = None
    timings: dict[str, float] | None = None
    prints: list[bytes] | None = None
    epoch: int | None = None
    position: int | None = None
    busy: bool = False
    pace: list[float] | None = None
    blames: str | None = None
    line: int | None = None
    moved: list[int] | None = None


class DirectRequest(Record):
    """Asks for a place to bring step frames over a connection of their own."""


class DirectReply(Record):
    """`port` at the host libp2p is connected to; `name` (16 bytes) to say there first, good once; `key` (32 bytes) seals the frames.

    `bundle`: so many step frames may come as one (protocol/bundles.py); 0: each by itself.
    """

    port: int
    name: bytes
    key: bytes
    bundle: int = 0


class StepHead(Record):
    """Head of a step frame: head length (2 bytes, big-endian), head, raw buffer.

    `kind` "tokens" (raw little-endian int32), "hidden" (raw, `dtype` and `shape` [count, hidden]), "token" (one
    sampled token from the last stage, to the entry and the first stage; `finish` set on the last one), "cut" (nothing raw: to the
    entry, all before `position` went as far as it had to) or "scores" (to the entry: logarithms of the prompt's tokens from `position` on,
    of each `shape` [tokens, width] pairs of an int32 token and its fp32 logarithm, its own first). `stage` is the index of the stage it
    is for, None for the entry alone; an entry
    that is the first stage too gets a token once, as stage 0. `more`: another cut of the same prompt follows, nothing is sampled.
    `logprobs` go with a token where they were asked: the chosen one first, then the likeliest. `guessed`: so many of the last
    positions of hidden states are of guessed tokens, whose ids (kind "guess", raw int32, at the `position` of their step) the first stage
    sends to the last one alone. As many of them as the last stage would have chosen itself come back as tokens of one frame, `position`
    that of the first, and the next step begins behind them: what lies beyond is dropped on the way.
    `spent`, on its way to the entry: microseconds of each stage so far, computing and then waiting for its turn there, as each measured
    its own; -1 where one didn't tell.
    """

    session: bytes
    epoch: int
    position: int
    kind: str
    dtype: str | None = None
    shape: list[int] | None = None
    finish: str | None = None
    stage: int | None = None
    more: bool = False
    logprobs: list[TokenLogprob] | None = None
    guessed: int = 0
    spent: list[int] | None = None


_ENCODER = msgspec.msgpack.Encoder(order="sorted")
_DECODER = msgspec.msgpack.Decoder(StepHead)
"""Heads by msgspec alone, each in a tenth of the time: a crowd's steps are thousands a second."""


def step_frame(head: StepHead, raw: bytes | memoryview) -> bytes:
    packed = _ENCODER.encode(head)  # the same bytes as `pack` gives
    return b"".join((len(packed).to_bytes(2, "big"), packed, raw))


def _parse_head(packed: memoryview) -> StepHead:
    """A head that is exactly what would be written for it holds nothing that has to be looked for; any other is unpacked with care."""
    try:
        head = _DECODER.decode(packed)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return unpack(packed, StepHead, "step")
    return head if _ENCODER.encode(head) == packed else unpack(packed, StepHead, "step")


def parse_step(frame: bytes | memoryview) -> tuple[StepHead, memoryview]:
    """Head and raw buffer, the buffer's length checked against the shape announced."""
    if len(frame) < 2:
        raise BadInput("step: shorter than its head length")
    size = int.from_bytes(frame[:2], "big")
    view = memoryview(frame)
    head = _parse_head(view[2 : 2 + size])
    raw = view[2 + size :]
    if len(head.session) != 16 or head.epoch < 0 or not 0 <= head.position < 1 << 31 or not 0 <= head.guessed <= limits.MAX_DRAFTED:
        raise BadInput("step: session, epoch, position or guessed out of range")
    _check_spent(head.spent)
    if head.kind == "hidden":
        _check_hidden(head, len(raw))
    elif head.kind == "scores":
        _check_scores(head, len(raw))
    elif head.kind not in _RAW or len(raw) % 4 or len(raw) not in _RAW[head.kind]:
        raise BadInput(f"step: kind {head.kind[:16]!r} with {len(raw)} raw bytes")
    return head, raw


_RAW = {
    "tokens": range(limits.MAX_ACTIVATION_FRAME),
    "token": range(4, 4 * limits.MAX_DRAFTED + 5, 4),
    "guess": range(4, 4 * limits.MAX_DRAFTED + 1, 4),
    "cut": (0,),
}
"""Raw bytes by kind."""


def _check_spent(spent: list[int] | None) -> None:
    if not spent:
        return
    if len(spent) > 2 * limits.MAX_TIMED_STAGES or len(spent) % 2 or min(spent) < -1 or max(spent) >= 1 << 31:
        raise BadInput(f"step: {len(spent)} times of stages, two each of at most {limits.MAX_TIMED_STAGES}, -1 to 2^31")


def _check_scores(head: StepHead, size: int) -> None:
    shape = head.shape or []
    if (
        len(shape) != 2
        or not 0 < shape[0] <= limits.MAX_ARRAY
        or not 0 < shape[1] <= limits.MAX_LOGPROBS + 1
        or 8 * shape[0] * shape[1] != size
    ):
        raise BadInput(f"step: {size} raw bytes for scores of shape {shape[:4]}")


def _check_hidden(head: StepHead, size: int) -> None:
    width = {"bf16": 2, "fp16": 2, "fp32": 4}.get(head.dtype or "")
    shape = head.shape or []
    if width is None or len(shape) != 2 or not 0 < min(shape) <= max(shape) <= 1 << 20:
        raise BadInput("step: hidden states need a dtype of bf16, fp16, fp32 and a shape [count, hidden]")
    if shape[0] * shape[1] * width != size:
        raise BadInput(f"step: {size} raw bytes for shape {shape} of {head.dtype}")
