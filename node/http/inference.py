"""One whole reply of /api/v1, from the cache where it may come from there.

What is deterministic (greedy, or with a seed) and asked again by the same account about the same model is answered from memory, but for
private models. The plan is made all the same: only it says which model a name means now.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
from aiohttp import web

from node.gateway import Finished, GenerationRequest, Planned
from node.http import replies
from node.http.classification import classified, gives_labels
from node.http.context import GATEWAY, METRICS, SETTINGS
from node.http.errors import timestamp
from node.http.generation import generation
from node.http.kept import Kept
from node.http.metering import caller
from protocol.framing import pack
from protocol.ids import digest

CACHE: web.AppKey[Kept] = web.AppKey("cache", Kept)


class Answer(msgspec.Struct, array_like=True):
    """A reply as the cache keeps it."""

    text: str
    reason: str
    prompt_tokens: int
    completion_tokens: int


class Made(msgspec.Struct, frozen=True):
    """A reply, and whether the cache had it; `labels` in place of a text."""

    planned: Planned
    end: Finished
    text: str
    cached: bool = False
    labels: list[replies.Label] | None = None


def deterministic(wanted: GenerationRequest) -> bool:
    return wanted.sampling.temperature == 0 or wanted.sampling.seed is not None


def cache_name(wanted: GenerationRequest, model_id: str) -> bytes:
    """Of all that the reply depends on."""
    plain = msgspec.to_builtins(replace(wanted, model=model_id, timeout=0.0))
    return digest(b"cache" + pack(plain))


async def whole_reply(app: web.Application, wanted: GenerationRequest, anew: bool = False) -> Made:
    """The reply from the cache, unless it is to be made `anew`, or the model; errors as `generation` raises them."""
    if await gives_labels(app, wanted):
        planned, end, labels = await classified(app, wanted)
        return Made(planned, end, "", labels=labels)
    who, cache = caller().who, app[CACHE]
    async with generation(app[GATEWAY], wanted, app[METRICS], app[SETTINGS]) as reply:
        planned, name = reply.planned, cache_name(wanted, reply.planned.model_id)
        kept = cache.get(who, name) if deterministic(wanted) and not planned.private and not anew else None
        if kept is not None:
            found = msgspec.msgpack.decode(kept, type=Answer)
            end = Finished(found.reason, found.prompt_tokens, found.completion_tokens, planned.route, {"total": 0.0})
            reply.finished = end
            return Made(planned, end, found.text, True)
        text = "".join([piece.text async for piece in reply.pieces()])
    end = reply.end()
    if deterministic(wanted) and not planned.private:
        answer = Answer(text, end.reason, end.prompt_tokens, end.completion_tokens)
        cache.put(who, name, msgspec.msgpack.encode(answer))
    return Made(planned, end, text)


def metadata_of(made: Made) -> replies.Metadata:
    found = replies.metadata_of(made.planned, made.end)
    found.cache_hit = made.cached
    return found


def inference_of(made: Made, inference_id: str, with_metadata: bool) -> replies.Inference:
    return replies.Inference(
        inference_id=inference_id,
        model_id=made.planned.model_id,
        result=_result(made),
        usage=replies.usage_of(made.end),
        timestamp=timestamp(),
        metadata=metadata_of(made) if with_metadata else msgspec.UNSET,
    )


def _result(made: Made) -> replies.Result:
    if made.labels is not None:
        return replies.Result(labels=made.labels)
    return replies.Result(text=made.text, tokens_generated=made.end.completion_tokens, finish_reason=made.end.reason)
