"""From a chat's request to what the node is asked, and to the reader that takes its reply apart again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from node.gateway import GenerationRequest
from node.http import openai_schemas as schemas
from node.http.constraints import check_choice, grammar_of
from node.http.schemas import TextPart
from node.http.tool_calls import NamedCall, Said, Text, ToolCalls
from protocol.errors import BadInput
from protocol.messages import Grammar, LogitBias, Sampling

_SEED_RANGE = 2**63


class Reader(Protocol):
    """Text and calls out of a reply as it comes; `count` calls so far."""

    count: int

    def feed(self, text: str) -> list[Said]: ...

    def finish(self) -> list[Said]: ...


class PlainReader:
    """No tools: all is text."""

    count = 0

    def feed(self, text: str) -> list[Said]:
        return [Text(text)] if text else []

    def finish(self) -> list[Said]:
        return []


@dataclass(frozen=True)
class ChatAsk:
    """`requests`: one for each choice; `reader` makes a fresh one for each."""

    requests: list[GenerationRequest]
    reader: Callable[[], Reader]


def chat_ask(body: schemas.ChatRequest, timeout: float) -> ChatAsk:
    """`BadInput` names the field where fields don't fit together."""
    _check(body)
    tools = body.tools or []
    check_choice(tools, body.tool_choice)
    usable = [] if body.tool_choice == "none" else tools
    wanted = GenerationRequest(
        model=body.model,
        sampling=sampling_of(body, _logprobs(body), grammar_of(body.response_format, usable, body.tool_choice)),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        messages=[_plain(message, f"messages[{number}]") for number, message in enumerate(body.messages)],
        tools=[_told(tool) for tool in usable] or None,
        stop=stops_of(body.stop),
        continue_final=body.continue_final_message,
        timeout=timeout,
    )
    return ChatAsk(several(wanted, body.n or 1), _reader(body, usable))


def several(wanted: GenerationRequest, count: int) -> list[GenerationRequest]:
    """The same request `count` times; a seed is counted up, else all would say the same."""
    seed = wanted.sampling.seed
    if count == 1 or seed is None:
        return [wanted] * count
    return [replace(wanted, sampling=_seeded(wanted.sampling, (seed + number) % _SEED_RANGE)) for number in range(count)]


def _seeded(sampling: Sampling, seed: int) -> Sampling:
    return Sampling(**{name: getattr(sampling, name) for name in sampling.__struct_fields__} | {"seed": seed})


def sampling_of(options: schemas.SamplingOptions, logprobs: int | None, grammar: Grammar | None) -> Sampling:
    """What isn't given is the node's default (greedy). A negative seed is folded into the range."""
    names = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(options, name)) is not None}
    if options.seed is not None:
        given["seed"] = options.seed % _SEED_RANGE
    if options.logit_bias:
        given["logit_bias"] = [LogitBias(int(token), bias) for token, bias in options.logit_bias.items()]
    return Sampling(**given, logprobs=logprobs, grammar=grammar)


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def check_stream(stream: bool | None, options: schemas.StreamOptions | None, chunks: bool = True) -> None:
    """`chunks`: whether the stream has any that could carry the usage so far."""
    if options is None:
        return
    if not stream:
        raise BadInput("stream_options goes with stream: true alone", details={"param": "stream_options"})
    if options.continuous_usage_stats and not (chunks and options.include_usage):
        why = "goes with include_usage alone" if chunks else "isn't supported here: the last event has the usage"
        param = "stream_options.continuous_usage_stats"
        raise BadInput(f"{param} {why}", details={"param": param})


def _check(body: schemas.ChatRequest) -> None:
    check_stream(body.stream, body.stream_options)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise BadInput("max_tokens and max_completion_tokens say the same: give one", details={"param": "max_tokens"})
    if body.top_logprobs is not None and not body.logprobs:
        raise BadInput("top_logprobs goes with logprobs: true alone", details={"param": "top_logprobs"})
    if body.continue_final_message and not isinstance(body.messages[-1], schemas.AssistantMessage):
        raise BadInput("continue_final_message wants the assistant's message last", details={"param": "continue_final_message"})


def _logprobs(body: schemas.ChatRequest) -> int | None:
    return (body.top_logprobs or 0) if body.logprobs else None


def _text(content: str | list[TextPart] | None) -> str:
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part.text for part in content)


def _plain(message: schemas.Message, where: str) -> dict[str, Any]:
    """As the model's template wants it: a call's arguments are an object there."""
    if isinstance(message, schemas.ToolMessage):
        named = {"name": message.name} if message.name else {}
        return {"role": "tool", "content": _text(message.content), "tool_call_id": message.tool_call_id, **named}
    if isinstance(message, schemas.AssistantMessage):
        calls = [_call(call, where) for call in message.tool_calls or ()]
        if not calls and message.content is None:
            raise BadInput(f"{where}.content: an assistant's message has content or tool_calls", details={"param": f"{where}.content"})
        return {"role": "assistant", "content": _text(message.content)} | ({"tool_calls": calls} if calls else {})
    role = "user" if isinstance(message, schemas.UserMessage) else "system"
    return {"role": role, "content": _text(message.content)}


def _call(call: schemas.MessageCall, where: str) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        param = f"{where}.tool_calls[...].function.arguments"
        raise BadInput(f"{param}: not a JSON object in a string", details={"param": param})
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _told(tool: schemas.Tool) -> dict[str, Any]:
    function = tool.function
    told = {"name": function.name, "description": function.description or "", "parameters": function.parameters or {"type": "object"}}
    return {"type": "function", "function": told}


def _reader(body: schemas.ChatRequest, tools: list[schemas.Tool]) -> Callable[[], Reader]:
    if isinstance(body.tool_choice, schemas.ChosenTool):
        name = body.tool_choice.function.name
        return lambda: NamedCall(name)
    if not tools:
        return PlainReader
    declared = {tool.function.name: tool.function.parameters or {} for tool in tools}
    return lambda: ToolCalls(declared, parallel=body.parallel_tool_calls is not False)
