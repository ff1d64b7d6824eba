"""`/v1/chat/completions`, plain and streamed."""

from __future__ import annotations

from aiohttp import web
from msgspec import UNSET

from node.gateway import Finished, Piece, TextLogprob
from node.http import openai_replies as replies
from node.http.bodies import read_json
from node.http.context import GATEWAY, METRICS, SETTINGS, json_reply
from node.http.generation import headers_of
from node.http.openai_ask import ChatAsk, Reader, chat_ask
from node.http.openai_common import Naming, StreamUsage, call_id, naming, open_stream, usage_of
from node.http.openai_logprobs import chat_logprobs
from node.http.openai_schemas import UNSUPPORTED_CHAT, ChatRequest
from node.http.replies import trace_of
from node.http.side_by_side import SideBySide, side_by_side
from node.http.tool_calls import CallArguments, CallBegins, Said, Text


async def chat(request: web.Request) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    body = await read_json(request, ChatRequest, settings, unsupported=UNSUPPORTED_CHAT)
    ask = chat_ask(body, settings.generation_timeout)
    async with side_by_side(request.app[GATEWAY], ask.requests, request.app[METRICS], settings) as together:
        named = naming("chatcmpl", body.model, together.planned[0])
        if body.stream:
            return await _stream(request, body, ask, together, named)
        choices = [Gathered(ask.reader(), bool(body.logprobs)) for _ in ask.requests]
        async for index, event in together.events():
            if isinstance(event, Piece):
                choices[index].take(event)
    ends = together.ends
    shown = [choice.shown(index, end) for index, (choice, end) in enumerate(zip(choices, ends, strict=True))]
    completion = replies.ChatCompletion(**named.fields(), choices=shown, usage=usage_of(ends, len(ends)))
    return json_reply(completion, headers_of(together.planned[0], ends[0]))


class Gathered:
    """One choice of a plain reply as it comes together."""

    def __init__(self, reader: Reader, logprobs: bool) -> None:
        self._reader = reader
        self._logprobs: list[TextLogprob] | None = [] if logprobs else None
        self.text = ""
        self.calls: list[tuple[str, list[str]]] = []
        """Name and arguments in parts."""

    def take(self, piece: Piece) -> None:
        self._add(self._reader.feed(piece.text))
        if self._logprobs is not None:
            self._logprobs += piece.logprobs

    def end(self) -> None:
        self._add(self._reader.finish())

    def shown(self, index: int, end: Finished) -> replies.Choice:
        self.end()
        calls = [_whole(name, "".join(parts)) for name, parts in self.calls]
        message = replies.ReplyMessage(content=self.text or (None if calls else ""), tool_calls=calls or UNSET)
        reason = finish_reason(end.reason, len(calls))
        return replies.Choice(index=index, message=message, finish_reason=reason, logprobs=chat_logprobs(self._logprobs))

    def _add(self, said: list[Said]) -> None:
        for one in said:
            if isinstance(one, Text):
                self.text += one.text
            elif isinstance(one, CallBegins):
                self.calls.append((one.name, []))
            else:
                self.calls[one.index][1].append(one.text)


def _whole(name: str, arguments: str) -> replies.ToolCall:
    return replies.ToolCall(id=call_id(), function=replies.FunctionCall(name=name, arguments=arguments))


def finish_reason(reason: str, calls: int) -> str:
    return "tool_calls" if calls and reason == "stop" else reason


def delta_of(said: Said) -> replies.Delta:
    if isinstance(said, Text):
        return replies.Delta(content=said.text)
    if isinstance(said, CallBegins):
        function = replies.FunctionDelta(name=said.name, arguments="")
        return replies.Delta(tool_calls=[replies.ToolCallDelta(index=said.index, id=call_id(), type="function", function=function)])
    assert isinstance(said, CallArguments)
    return replies.Delta(tool_calls=[replies.ToolCallDelta(index=said.index, function=replies.FunctionDelta(arguments=said.text))])


async def _stream(request: web.Request, body: ChatRequest, ask: ChatAsk, together: SideBySide, named: Naming) -> web.StreamResponse:
    stream = await open_stream(request, together.planned[0])
    together.on_queued = stream.queued
    usage = StreamUsage(body.stream_options, together, len(ask.requests))
    chunks = _Chunks(named, ask, bool(body.logprobs), usage)
    for index in range(len(ask.requests)):
        await stream.send(chunks.chunk(index, replies.Delta(role="assistant", content="")))
    last: replies.ChatChunk | None = None
    async for index, event in together.events():
        for chunk in chunks.piece(index, event) if isinstance(event, Piece) else chunks.end(index, event):
            if last is not None:
                await stream.send(last)
            last = None
            if chunk.choices[0].finish_reason is None:
                await stream.send(chunk)
            else:
                last = chunk
    assert last is not None
    if usage.asked:
        await stream.send(last)
        last = replies.ChatChunk(**named.fields(), choices=[], usage=usage_of(together.ends, len(together.ends)))
    last.mf = trace_of(together.planned[0], together.ends[0])
    await stream.send(last)
    return await stream.done()


class _Chunks:
    """The chunks of a streamed chat. Logarithms go with the first chunk that their piece, or a later one, gives rise to."""

    def __init__(self, named: Naming, ask: ChatAsk, logprobs: bool, usage: StreamUsage) -> None:
        self._fields = named.fields()
        self._readers = [ask.reader() for _ in ask.requests]
        self._held: list[list[TextLogprob]] = [[] for _ in ask.requests]
        self._logprobs = logprobs
        self._usage = usage

    def chunk(self, index: int, delta: replies.Delta, reason: str | None = None) -> replies.ChatChunk:
        held, self._held[index] = self._held[index], []
        logprobs = chat_logprobs(held) if self._logprobs and held else None
        choice = replies.ChunkChoice(index=index, delta=delta, finish_reason=reason, logprobs=logprobs)
        return replies.ChatChunk(**self._fields, choices=[choice], usage=self._usage.now())

    def piece(self, index: int, piece: Piece) -> list[replies.ChatChunk]:
        self._held[index] += piece.logprobs
        self._usage.note(index, piece.tokens)
        return [self.chunk(index, delta_of(said)) for said in self._readers[index].feed(piece.text)]

    def end(self, index: int, end: Finished) -> list[replies.ChatChunk]:
        reader = self._readers[index]
        rest = [self.chunk(index, delta_of(said)) for said in reader.finish()]
        return [*rest, self.chunk(index, replies.Delta(), finish_reason(end.reason, reader.count))]
