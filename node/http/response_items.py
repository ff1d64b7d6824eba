"""The items of one response as its text comes, and the events that tell a client of each step."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from node.gateway import Piece, TextLogprob
from node.http.openai_ask import Reader
from node.http.openai_common import call_id
from node.http.openai_logprobs import token_logprobs
from node.http.openai_replies import OutputCall, OutputMessage, OutputText
from node.http.tool_calls import CallArguments, CallBegins, Said, Text

Event = tuple[str, dict[str, Any]]


class Items:
    """`take` and `finish` give (type, fields) of the events; `output` is what has come so far. One item is open at a time."""

    def __init__(self, reader: Reader) -> None:
        self.output: list[OutputMessage | OutputCall] = []
        self._reader = reader
        self._logprobs: list[TextLogprob] = []
        self._open = False

    def take(self, piece: Piece) -> list[Event]:
        self._logprobs += piece.logprobs
        return list(self._events(self._reader.feed(piece.text)))

    def finish(self, reason: str) -> list[Event]:
        """`reason` length leaves the last item incomplete."""
        events = list(self._events(self._reader.finish()))
        if not self.output:
            events += self._text("")
        return [*events, *self._close("completed" if reason == "stop" else "incomplete")]

    def _events(self, said: Iterable[Said]) -> Iterator[Event]:
        for one in said:
            if isinstance(one, Text):
                yield from self._text(one.text)
            elif isinstance(one, CallBegins):
                yield from self._close("completed")
                call = OutputCall(id=f"fc_{secrets.token_hex(12)}", call_id=call_id(), name=one.name, arguments="", status="in_progress")
                yield from self._begin(call)
            else:
                yield self._arguments(one)

    def _begin(self, item: OutputMessage | OutputCall) -> Iterator[Event]:
        self.output.append(item)
        self._open = True
        yield "response.output_item.added", {"output_index": len(self.output) - 1, "item": item}

    def _text(self, text: str) -> Iterator[Event]:
        if not (self._open and isinstance(self.output[-1], OutputMessage)):
            yield from self._close("completed")
            message = OutputMessage(id=f"msg_{secrets.token_hex(12)}", status="in_progress", content=[])
            yield from self._begin(message)
            message.content.append(OutputText(text=""))
            yield "response.content_part.added", {**self._at(message), "content_index": 0, "part": message.content[0]}
        message = self.output[-1]  # type: ignore[assignment]
        part = message.content[0]
        held, self._logprobs = token_logprobs(self._logprobs), []
        part.text += text
        part.logprobs = [*part.logprobs, *held]
        if text:
            yield "response.output_text.delta", {**self._at(message), "content_index": 0, "delta": text, "logprobs": held}

    def _arguments(self, more: CallArguments) -> Event:
        call = self.output[-1]
        assert isinstance(call, OutputCall)
        call.arguments += more.text
        return "response.function_call_arguments.delta", {**self._at(call), "delta": more.text}

    def _close(self, status: str) -> Iterator[Event]:
        if not self._open:
            return
        item, self._open = self.output[-1], False
        item.status = status
        if isinstance(item, OutputMessage):
            part = item.content[0]
            yield "response.output_text.done", {**self._at(item), "content_index": 0, "text": part.text, "logprobs": part.logprobs}
            yield "response.content_part.done", {**self._at(item), "content_index": 0, "part": part}
        else:
            yield "response.function_call_arguments.done", {**self._at(item), "name": item.name, "arguments": item.arguments}
        yield "response.output_item.done", {"output_index": len(self.output) - 1, "item": item}

    def _at(self, item: OutputMessage | OutputCall) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": len(self.output) - 1}
