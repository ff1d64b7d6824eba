"""What the node asks of its worker process (runtime owns torch; the node never imports it).

The worker is started on the first request as `python -m runtime.worker FD`, FD being its end of a socketpair. Messages are frames of
canonical msgpack maps {"id", "method", "params"} / {"id", "result"} / {"id", "error"}, descriptors travelling beside by SCM_RIGHTS
(`runtime/worker_channel.py` there, `node/channel.py` here). One request is answered at a time per session; different sessions interleave.
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.framing import Record
from protocol.messages import Sampling


class WorkerConfig(Record):
    """First message ("configure"), answered with {"sandbox": {feature: "on" or why not}}.

    `scratch` is the one folder it may write; `threads` for torch; `memory` bytes for weights, KV and activations.
    """

    scratch: str
    threads: int
    memory: int


class TensorPlace(msgspec.Struct, array_like=True, frozen=True):
    """A tensor (or the cut of one) in a group's mapping: `group` indexes the message's descriptors; `at` bytes from its start.

    `part` counts the cuts of one tensor, 0 for the first; several cuts of one tensor are joined by copying.
    """

    name: str
    dtype: str
    shape: list[int]
    group: int
    at: int
    length: int
    part: int


class LoadText(Record):
    """("load_text") Tokenizer, config and template of a model, from `files` {name: bytes}, all verified."""

    model: str
    files: dict[str, bytes]


class TextLoaded(Record):
    eos: list[int]
    context: int | None
    has_template: bool


class LoadStage(Record):
    """("load_stage", descriptors: one per group) Builds layers [first, end); the first stage embeds, the last has norm and head.

    `precision` "bf16" or "fp32" (the reference mode: weights cast up once). `task` "generate", or "embed" or "classify":
    then it is a whole model (first 0, end = layers) that `encode` is asked of.
    """

    stage: str
    model: str
    first: int
    end: int
    layers: int
    tensors: list[TensorPlace]
    lengths: list[int]
    precision: str
    task: str = "generate"


class StageLoaded(Record):
    """`bytes` of weights by formula; `seconds` to load; `self_test` what was checked."""

    bytes: int
    seconds: float
    self_test: str


class EncodeChat(Record):
    """("encode_chat") `messages` [{"role","content"}] through the model's template (sandboxed, 250 ms)."""

    model: str
    messages: list[dict[str, Any]]
    continue_final: bool = False
    tools: list[dict[str, Any]] | None = None


class EncodeText(Record):
    model: str
    text: str


class Tokens(Record):
    tokens: list[int]


class Encode(Record):
    """("encode") Texts as token ids through a stage loaded to embed or classify. `normalise` makes vectors of length 1."""

    stage: str
    tokens: list[list[int]]
    normalise: bool = True


class Encoded(Record):
    """One row for each text: raw little-endian fp32, a vector [width], or scores in the order of `labels`."""

    rows: list[bytes]
    labels: list[str]


class OpenSequence(Record):
    """("open_sequence") Room for `tokens_max` positions in a loaded stage, `Busy` when there is none."""

    stage: str
    session: str
    tokens_max: int
    sampling: Sampling


UNCHECKED = -1
"""In place of a token to check: nothing to hold this row against."""


class Step(Record):
    """("step") One pass over positions [position, position+count).

    Give `tokens` (first stage) or `hidden` (raw bytes, [count, hidden] in the stage's precision). Idempotent: a (session, epoch,
    position) seen before is answered again; a gap is `Conflict`; a new epoch drops what lies at and beyond `position`.
    `check`, to the last stage: for each row the token that was given next, or -1. `tail`: the last stage gives its rows before
    the head too.
    """

    session: str
    epoch: int
    position: int
    tokens: list[int] | None = None
    hidden: bytes | None = None
    count: int = 0
    sample: bool = True
    check: list[int] | None = None
    tail: bool = False


class Stepped(Record):
    """`token` from the last stage (when `sample`), else `hidden` for the next; `seconds` of compute from `began`, which is the system's
    monotonic clock: on one machine it can be compared between processes. `gaps` of the tokens checked.
    """

    token: int | None = None
    hidden: bytes | None = None
    dtype: str | None = None
    shape: list[int] | None = None
    seconds: float = 0.0
    began: float = 0.0
    gaps: list[float] | None = None


class CloseSequence(Record):
    session: str


class OpenText(Record):
    """("open_text") A stream decoder: feed token ids, get text that is whole characters."""

    model: str
    stream: str


class DecodeText(Record):
    """("decode_text") `last` flushes what is held back."""

    stream: str
    tokens: list[int]
    last: bool = False


class Text(Record):
    text: str


class Unload(Record):
    stage: str


class Usage(Record):
    """("usage") Bytes by formula: weights, KV reserved, activations; `base` the process's own measured PSS less those."""

    weights: int
    kv: int
    activations: int
    base: int
    sequences: int
