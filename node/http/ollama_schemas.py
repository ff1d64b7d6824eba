"""The bodies that Ollama's paths take. What this node doesn't honour is refused by name; `keep_alive` is taken and not used."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from node.http.openai_schemas import Penalty, Temperature, Tool
from node.http.schemas import Name, Seed, StopList, StopText, TopP

Format = Literal["", "json"] | dict[str, Any]
Predicted = Annotated[int, Meta(ge=-2, le=1_048_576, description="-1 and -2: as many as fit")]


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How tokens are chosen. Temperature 0 (also the default here) is greedy."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_048_576)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: StopText | StopList | None = None
    num_predict: Predicted | None = None


class Called(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)


class MessageCall(msgspec.Struct, frozen=True, kw_only=True):
    function: Called
    id: str | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: Annotated[list[MessageCall], Meta(max_length=128)] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Ask(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What chat and generate have in common."""


class ChatRequest(_Ask, frozen=True, kw_only=True):
    model: Name
    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)]
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    format: Format | None = None
    options: Options | None = None
    stream: bool = True
    think: Literal[False] | None = None
    keep_alive: float | str | None = None


class GenerateRequest(_Ask, frozen=True, kw_only=True):
    """`raw`: the prompt as it is, not through the model's template."""

    model: Name
    prompt: Annotated[str, Meta(min_length=1)]
    system: str | None = None
    format: Format | None = None
    options: Options | None = None
    stream: bool = True
    raw: bool = False
    think: Literal[False] | None = None
    keep_alive: float | str | None = None


class ShowRequest(_Ask, frozen=True, kw_only=True):
    """`name` is the older word for `model`."""

    model: Name | None = None
    name: Name | None = None
    verbose: bool = False


UNSUPPORTED = frozenset({"suffix", "images", "template", "context", "logprobs", "top_logprobs", "truncate", "shift", "num_ctx"})
"""Ollama's fields that this node knows of and doesn't honour."""
