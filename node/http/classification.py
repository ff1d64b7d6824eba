"""Inference of a model that gives labels: a text and nothing else is asked of it."""

from __future__ import annotations

import asyncio

from aiohttp import web

from node.gateway import ClassificationRequest, Finished, GenerationRequest, Planned
from node.http import replies
from node.http.context import GATEWAY, SETTINGS
from node.model_kinds import CLASSIFIES
from protocol.errors import BadInput, DeadlineExceeded


async def gives_labels(app: web.Application, wanted: GenerationRequest) -> bool:
    """`DeadlineExceeded` where the model isn't found in the request's time; the other errors of `Gateway.category`."""
    try:
        async with asyncio.timeout(wanted.timeout + app[SETTINGS].grace):
            return await app[GATEWAY].category(wanted.model) == CLASSIFIES
    except TimeoutError:
        raise DeadlineExceeded(f"the model wasn't found within {wanted.timeout:g} s", hint="ask again, or give it longer") from None


async def classified(app: web.Application, wanted: GenerationRequest) -> tuple[Planned, Finished, list[replies.Label]]:
    """Its labels, the greatest score first; `BadInput` for what only a model that writes can be asked."""
    if wanted.text is None:
        raise BadInput("input: a text-classification model takes text, not messages", details={"param": "input.messages"})
    _check(wanted)
    made = await app[GATEWAY].classify(ClassificationRequest(wanted.model, [wanted.text], wanted.timeout))
    found = zip(made.labels, made.scores[0], strict=True)
    labels = [replies.Label(label=label, score=score) for label, score in sorted(found, key=lambda one: -one[1])]
    planned = Planned(made.model_id, "here", made.route, made.tokens, "torch", made.precision)
    return planned, Finished("stop", made.tokens, 0, made.route, made.timings), labels


def _check(wanted: GenerationRequest) -> None:
    given = {
        "max_tokens": wanted.max_tokens is not None,
        "temperature": wanted.sampling.temperature != 0,
        "top_p": wanted.sampling.top_p != 1,
        "top_k": wanted.sampling.top_k != 0,
        "seed": wanted.sampling.seed is not None,
        "stop_sequences": bool(wanted.stop),
    }
    unfit = [name for name, is_given in given.items() if is_given]
    if unfit:
        raise BadInput(f"input: a text-classification model takes no {', '.join(unfit)}", details={"param": f"input.{unfit[0]}"})
