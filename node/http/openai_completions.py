"""`/v1/completions`: going on with texts or token ids, plain and streamed."""

from __future__ import annotations

from dataclasses import replace

from aiohttp import web

from node.gateway import Finished, GenerationRequest, Piece, TextLogprob
from node.http import openai_replies as replies
from node.http.bodies import read_json
from node.http.context import GATEWAY, METRICS, SETTINGS, json_reply
from node.http.generation import headers_of
from node.http.openai_ask import check_stream, sampling_of, several, stops_of
from node.http.openai_common import Naming, StreamUsage, naming, open_stream, usage_of
from node.http.openai_logprobs import completion_logprobs
from node.http.openai_schemas import UNSUPPORTED_COMPLETIONS, CompletionsRequest
from node.http.replies import trace_of
from node.http.side_by_side import SideBySide, side_by_side
from protocol.errors import BadInput

MAX_CHOICES = 64
_DEFAULT_TOKENS = 16
"""OpenAI's own."""


def one_or_many(given: str | list[str | int | list[int]], param: str, most: int) -> list[str | list[int]]:
    """One text, one list of token ids, or a list of either, never mixed."""
    if isinstance(given, str):
        return [given]
    kinds = {type(item) for item in given}
    if len(kinds) != 1:
        raise BadInput(f"{param}: texts and token ids don't mix", details={"param": param})
    if kinds == {int}:
        return [[item for item in given if isinstance(item, int)]]
    if len(given) > most:
        raise BadInput(f"{param}: {len(given)} inputs, at most {most}", details={"param": param})
    return [item for item in given if not isinstance(item, int)]


def _requests(body: CompletionsRequest, timeout: float) -> list[GenerationRequest]:
    prompts, count = one_or_many(body.prompt, "prompt", MAX_CHOICES), body.n or 1
    if any(not prompt for prompt in prompts):
        raise BadInput("prompt: it is empty", details={"param": "prompt"})
    if len(prompts) * count > MAX_CHOICES:
        raise BadInput(f"n: {len(prompts)} prompts make {len(prompts) * count} choices, at most {MAX_CHOICES}", details={"param": "n"})
    if body.best_of not in (None, count):
        raise BadInput("best_of: choices aren't ranked here, it can only be n", details={"param": "best_of"})
    if body.max_tokens == 0 and not body.echo:
        raise BadInput("max_tokens: 0 goes with echo: true alone", details={"param": "max_tokens"})
    wanted = GenerationRequest(
        model=body.model,
        sampling=sampling_of(body, body.logprobs, None),
        max_tokens=_DEFAULT_TOKENS if body.max_tokens is None else max(1, body.max_tokens),
        stop=stops_of(body.stop),
        echo=bool(body.echo),
        timeout=timeout,
    )
    texts = [replace(wanted, text=one) if isinstance(one, str) else replace(wanted, tokens=one) for one in prompts]
    return [request for text in texts for request in several(text, count)]


async def completions(request: web.Request) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    body = await read_json(request, CompletionsRequest, settings, unsupported=UNSUPPORTED_COMPLETIONS)
    check_stream(body.stream, body.stream_options)
    wanted = _requests(body, settings.generation_timeout)
    async with side_by_side(request.app[GATEWAY], wanted, request.app[METRICS], settings) as together:
        named = naming("cmpl", body.model, together.planned[0])
        choices = [_Choice(index, body) for index in range(len(wanted))]
        if body.stream:
            return await _stream(request, body, together, named, choices)
        async for index, event in together.events():
            choices[index].take(event)
    ends = [choice.ended for choice in choices if choice.ended]
    completion = replies.Completion(**named.fields(), choices=[choice.shown() for choice in choices], usage=usage_of(ends, body.n or 1))
    return json_reply(completion, headers_of(together.planned[0], ends[0]))


class _Choice:
    """One choice: what has come and wasn't shown yet."""

    def __init__(self, index: int, body: CompletionsRequest) -> None:
        self.ended: Finished | None = None
        self._index = index
        self._nothing_new = body.max_tokens == 0
        self._text = ""
        self._offset = 0
        self._logprobs: list[TextLogprob] | None = None if body.logprobs is None else []

    def take(self, event: Piece | Finished) -> None:
        if isinstance(event, Finished):
            self.ended = replace(event, reason="length", completion_tokens=0) if self._nothing_new else event
        elif not (self._nothing_new and event.tokens):
            self._text += event.text
            if self._logprobs is not None:
                self._logprobs += event.logprobs

    def shown(self) -> replies.CompletionChoice:
        """What is new; then it is shown."""
        reason = self.ended.reason if self.ended else None
        logprobs = completion_logprobs(self._logprobs, self._offset) if self._logprobs or self._offset == 0 else None
        shown = replies.CompletionChoice(index=self._index, text=self._text, finish_reason=reason, logprobs=logprobs)
        self._offset += len(self._text)
        self._text = ""
        if self._logprobs is not None:
            self._logprobs = []
        return shown


async def _stream(
    request: web.Request, body: CompletionsRequest, together: SideBySide, named: Naming, choices: list[_Choice]
) -> web.StreamResponse:
    stream = await open_stream(request, together.planned[0])
    together.on_queued = stream.queued
    usage = StreamUsage(body.stream_options, together, body.n or 1)
    last: replies.Completion | None = None
    async for index, event in together.events():
        choices[index].take(event)
        if isinstance(event, Piece):
            usage.note(index, event.tokens if body.max_tokens != 0 else 0)
        shown = choices[index].shown()
        if not (shown.text or shown.finish_reason or shown.logprobs):
            continue
        if last is not None:
            await stream.send(last)
        last = replies.Completion(**named.fields(), choices=[shown], usage=usage.now())
        if shown.finish_reason is None:
            await stream.send(last)
            last = None
    assert last is not None
    ends = [choice.ended for choice in choices if choice.ended]
    if usage.asked:
        await stream.send(last)
        last = replies.Completion(**named.fields(), choices=[], usage=usage_of(ends, body.n or 1))
    last.mf = trace_of(together.planned[0], together.ends[0])
    await stream.send(last)
    return await stream.done()
