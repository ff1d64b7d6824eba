"""What the node asks of its worker process (runtime owns torch; the node never imports it).

The worker is started on the first request as `python -m runtime.worker FD`, FD being its end of a socketpair. Messages are frames of
canonical msgpack maps {"id", "method", "params"} / {"id", "result"} / {"id", "error"}, descriptors travelling beside by SCM_RIGHTS
(`runtime/worker_channel.py` there, `node/channel.py` here). One request is answered at a time per session; different sessions interleave.
"""

from __future__ import annotations

from typing import Any

import msgspec

from protocol.framing import Record
from protocol.messages import Sampling, StepHead, TokenLogprob
from runtime.compiled_shape import LayerShape


class WorkerConfig(Record):
    """First message ("configure"), answered with `Configured`.

    `scratch` is the one folder it may write; `threads` for torch; `memory` bytes for weights, KV and activations.
    `reuse`: whether what was computed for a prompt may serve the next one of the same account that begins alike. `device`: auto, or as
    torch names it (runtime/device.py); a device's own memory bounds `memory`. `ahead`: nobody waits for it yet, it may import what its
    first model will bring in.
    """

    scratch: str
    threads: int
    memory: int
    reuse: bool = True
    device: str = "cpu"
    ahead: bool = False


class DeviceTold(Record):
    """`name` as torch says it; `memory` bytes that weights, KV and activations may take there."""

    name: str
    memory: int


class Configured(Record):
    """The answer to "configure". `sandbox`: {feature: "on" or why not}."""

    sandbox: dict[str, str]
    device: DeviceTold


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

    `precision` as `runtime.memory.WIDTHS` names them; "fp32" is the reference mode (weights cast up once). `task` "generate", or "embed" or
    "classify": then it is a whole model (first 0, end = layers) that `encode` is asked of. `engine` auto, torch or llama; where llama.cpp
    can't run it torch does, and the answer says why. `checked`: what comparing this very stage's lean step said on this machine before; it
    isn't compared again.
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
    engine: str = "torch"
    checked: str = ""


class Compilable(Record):
    """`name` of the compiled form on this machine."""

    name: str
    shape: LayerShape


class StageLoaded(Record):
    """`bytes` of weights by formula; `seconds` to load; `self_test` what was checked; `goes_back`: its sequences can drop positions.

    `engine` torch or llama, as it was loaded, and `why`; `runs` the precision that its weights have; `compilable`: what a compiled form
    of its layers would be; None: there can't be one. `lean`: what comparing the lean step said, where that runs.
    """

    bytes: int
    seconds: float
    self_test: str
    goes_back: bool = False
    engine: str = "torch"
    why: str = ""
    runs: str = ""
    compilable: Compilable | None = None
    lean: str = ""


class TakeCompiled(Record):
    """("take_compiled", descriptors: `enter` and `leave`, the two libraries) Single rows of this stage run by them from now on, if they
    give what its layers give."""

    stage: str
    lengths: list[int]


class CompiledTaken(Record):
    """`said` of what was compared, or why not."""

    taken: bool
    said: str


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
    """One row for each text: raw little-endian fp32, a vector [width], or scores in the order of `labels` (as its `problem_type` says)."""

    rows: list[bytes]
    labels: list[str]


class Left(msgspec.Struct, array_like=True, frozen=True):
    """What a closed sequence leaves, for who can name it: `owner` and `name`. No other owner meets it."""

    owner: str
    name: str


class OpenSequence(Record):
    """("open_sequence") Room for `tokens_max` positions in a loaded stage, `Busy` when there is none.

    `reply`: tokens made before on another stage, from which penalties and grammar go on; the last of them is at the position
    before the first one sampled here. What it takes is weighed against other accounts'. `after`: what a sequence closed before left of
    its first `positions` is taken over, if it is still there; answered by `Opened`.
    """

    stage: str
    session: str
    tokens_max: int
    sampling: Sampling
    reply: list[int] | None = None
    account: str = ""
    weight: float = 1.0
    priority: int = 0
    after: Left | None = None
    positions: int = 0


class Opened(Record):
    """`reused` positions are there already; the first step begins behind them, or before."""

    reused: int = 0


UNCHECKED = -1
"""In place of a token to check: nothing to hold this row against."""


class Onward(Record):
    """A step's result may go by a lane: `head` as of its frame, `position` that of the frame, `spent` as it came.

    `index` of this stage; `asked`: when it was, by the system's monotonic clock; `tells`: the receiver hears times and logarithms. A token
    of `stop`, or one that fills `end` positions, is the node's to send.
    """

    lane: int
    head: StepHead
    index: int
    asked: float
    tells: bool
    stop: list[int]
    end: int


class TakeLane(Record):
    """("take_lane") A connection to another node's place for step frames, as the only descriptor, and the key that seals it."""

    lane: int
    key: bytes


class DropLane(Record):
    """("drop_lane")"""

    lane: int


class Step(Record):
    """("step") One pass over positions [position, position+count).

    Give `tokens` (first stage) or `hidden` (raw bytes, [count, hidden] in the stage's precision). Idempotent: a (session, epoch,
    position) seen before is answered again; a gap is `Conflict`; a new epoch drops what lies at and beyond `position`.
    `guessed`: so many of the last positions are of guessed tokens, their ids in `drafted` for a last stage that takes hidden states;
    the step after it says by its position how many were right.
    `check`, to the last stage: for each row the token that was given next, or -1. `tail`: the last stage gives its rows before
    the head too. `score`, to the last stage: for each row the prompt's next token, or -1. `onward`: where it may go on by itself.
    """

    session: str
    epoch: int
    position: int
    tokens: list[int] | None = None
    hidden: bytes | None = None
    count: int = 0
    sample: bool = True
    guessed: int = 0
    drafted: list[int] | None = None
    check: list[int] | None = None
    tail: bool = False
    score: list[int] | None = None
    onward: Onward | None = None


class Stepped(Record):
    """`token` from the last stage (when `sample`), with `logprobs` where they are asked; else `hidden` for the next. `seconds` of compute
    from `began`, which is the system's monotonic clock: on one machine it can be compared between processes. `more` tokens follow
    where drafted ones were right. `gaps` of the tokens checked. `scored`: of each token to score its logarithm, then those of
    the likeliest. `sent`: bytes of its frame that are on their way to the next stage; -1: the lane for it has ended.
    """

    token: int | None = None
    logprobs: list[TokenLogprob] | None = None
    hidden: bytes | None = None
    dtype: str | None = None
    shape: list[int] | None = None
    seconds: float = 0.0
    began: float = 0.0
    more: list[int] | None = None
    more_logprobs: list[list[TokenLogprob]] | None = None
    gaps: list[float] | None = None
    scored: list[list[TokenLogprob]] | None = None
    sent: int = 0


class CloseSequence(Record):
    """("close_sequence") `left`: what was computed may stay for a while under that name, until its room is needed."""

    session: str
    left: Left | None = None


class SpelledToken(msgspec.Struct, array_like=True, frozen=True):
    text: str
    raw: bytes
    logprob: float


class Generate(Record):
    """("generate") A whole reply to `tokens`, made here: `Generated` once it ends, `Made` notes ("made", a list of them) after each pass.

    As `OpenSequence` it takes room for `tokens_max` positions, and `reply` repeats those of `tokens`, the last ones, that were made
    before. `text`: the tokens' text is told too, from where the reply's was. `account`, `weight` and `priority` are weighed
    against others'; no other `reader` meets what was computed for this one. `score`: the prompt's own tokens get logarithms too, as many as
    `sampling.logprobs` says. A cancelled request gives its room back before the next pass.
    """

    stage: str
    session: str
    tokens: list[int]
    tokens_max: int
    new_max: int
    stop_tokens: list[int]
    sampling: Sampling
    reply: list[int] | None = None
    text: bool = False
    account: str = ""
    weight: float = 1.0
    priority: int = 0
    reader: str = ""
    drafts: bool = True
    score: bool = False


class Made(msgspec.Struct, array_like=True, frozen=True):
    """New `tokens` of a session's reply, `text` of whole characters, `logprobs` of each token, its own first; `finish` on the last.
    None while a part of the prompt was computed.

    `scored`, on the first: of each token of the prompt but the first its logarithm, then those of the likeliest.
    """

    session: str
    tokens: list[int]
    text: str = ""
    logprobs: list[list[SpelledToken]] | None = None
    finish: str | None = None
    scored: list[list[TokenLogprob]] | None = None


class Generated(Record):
    """The end of a reply: `finish` stop|length, `made` tokens. Seconds: `wait` for the first pass, `prefill`, `decode` in `passes`.

    `drafted` tokens were guessed, `right` of them were; `reused` positions of the prompt were there from a request before.
    """

    finish: str = "stop"
    made: int = 0
    wait: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    passes: int = 0
    drafted: int = 0
    right: int = 0
    reused: int = 0


class OpenText(Record):
    """("open_text") A stream decoder: feed token ids, get text that is whole characters."""

    model: str
    stream: str


class DecodeText(Record):
    """("decode_text") `last` flushes what is held back. `logprobs`, one list for each token, are spelled out."""

    stream: str
    tokens: list[int]
    last: bool = False
    logprobs: list[list[TokenLogprob]] | None = None


class Text(Record):
    """`logprobs` as they were given, the tokens as text and bytes."""

    text: str
    logprobs: list[list[SpelledToken]] | None = None


class Unload(Record):
    stage: str


class StageUsage(Record):
    """What one stage has of the worker. `kv` and `left` bytes, `sequences` open, `waiting` for its next pass; since it was loaded: `passes`
    in `seconds`, `rows` in them, positions `reused`.
    """

    stage: str
    kv: int = 0
    left: int = 0
    sequences: int = 0
    waiting: int = 0
    passes: int = 0
    seconds: float = 0.0
    rows: int = 0
    reused: int = 0


class Usage(Record):
    """("usage") Bytes by formula: weights, KV reserved, activations; `base` the process's own measured PSS less those.

    `left`: bytes of finished sequences kept for prompts that begin alike, given up when needed; `waiting` sequences for the next
    pass. Counted since the start: `passes` in `seconds`, `rows` in them, positions of prompts and of replies, drafted and right ones,
    positions `reused`, steps `sent` on by lanes. `stages`: the same by stage.
    """

    weights: int
    kv: int
    activations: int
    base: int
    sequences: int
    left: int = 0
    waiting: int = 0
    sent: int = 0
    passes: int = 0
    seconds: float = 0.0
    rows: int = 0
    prompt: int = 0
    reply: int = 0
    drafted: int = 0
    right: int = 0
    reused: int = 0
    stages: list[StageUsage] | None = None
