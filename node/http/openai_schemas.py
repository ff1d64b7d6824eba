"""The bodies that `/v1` takes. What OpenAI knows and this node doesn't honour is refused by name: the `UNSUPPORTED_*` sets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from node.http.schemas import Count, Name, Seed, StopList, StopText, TextPart, TopP
from protocol import limits

Temperature = Annotated[float, Meta(ge=0, le=2, description="0 (also the default) is greedy")]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = dict[Annotated[str, Meta(pattern=r"^[0-9]{1,7}$")], Annotated[float, Meta(ge=-100, le=100)]]
Choices = Annotated[int, Meta(ge=1, le=16)]
ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
CallId = Annotated[str, Meta(max_length=128)]
Content = str | list[TextPart]
Token = Annotated[int, Meta(ge=0, lt=limits.MAX_VOCABULARY)]
Tokens = Annotated[list[Token], Meta(min_length=1, max_length=1_048_576)]
Metadata = Annotated[dict[str, str], Meta(max_length=16)]
Schema = dict[str, Any]


class Body(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Unknown fields are refused."""


class _Message(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True, tag_field="role"):
    """One of a conversation, told apart by `role`."""


class SystemMessage(_Message, frozen=True, kw_only=True, tag="system"):
    content: Content


class DeveloperMessage(_Message, frozen=True, kw_only=True, tag="developer"):
    """OpenAI's newer word for `system`."""

    content: Content


class UserMessage(_Message, frozen=True, kw_only=True, tag="user"):
    content: Content


class CalledFunction(Body, frozen=True, kw_only=True):
    """`arguments` is JSON in a string."""

    name: str
    arguments: str


class MessageCall(Body, frozen=True, kw_only=True):
    id: CallId
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class AssistantMessage(_Message, frozen=True, kw_only=True, tag="assistant"):
    """What a reply gave may be sent back as it came; what is always null there is taken as null."""

    content: Content | None = None
    tool_calls: Annotated[list[MessageCall], Meta(max_length=128)] | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Meta(max_length=0)] | None = None


class ToolMessage(_Message, frozen=True, kw_only=True, tag="tool"):
    """What a called tool answered; `name` goes to the model's template."""

    content: Content
    tool_call_id: CallId
    name: ToolName | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage
Messages = Annotated[list[Message], Meta(min_length=1, max_length=4096)]


class Function(Body, frozen=True, kw_only=True):
    """`strict` holds where the call is forced (tool_choice); where the model chooses, its arguments are passed on as it wrote them."""

    name: ToolName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(Body, frozen=True, kw_only=True):
    type: Literal["function"]
    function: Function


class ChosenFunction(Body, frozen=True, kw_only=True):
    name: ToolName


class ChosenTool(Body, frozen=True, kw_only=True):
    type: Literal["function"]
    function: ChosenFunction


ToolChoice = Literal["none", "auto", "required"]
Tools = Annotated[list[Tool], Meta(max_length=128)]


class StreamOptions(Body, frozen=True, kw_only=True):
    """`continuous_usage_stats` (not OpenAI's, but widespread): the usage so far on every chunk, not null until the last."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class TextFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """Some JSON object."""


class NamedSchema(Body, frozen=True, kw_only=True):
    """`strict` false is taken and held all the same."""

    name: ToolName
    schema: Schema
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Body, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON of this schema, by a grammar at the sampling stage."""

    json_schema: NamedSchema


Format = TextFormat | JsonObjectFormat | JsonSchemaFormat


class SamplingOptions(Body, frozen=True, kw_only=True):
    """How tokens are chosen. `top_k`, `min_p` and `repetition_penalty` aren't OpenAI's."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_048_576)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    logit_bias: Bias | None = None
    seed: Seed | None = None
    stop: StopText | StopList | None = None


class ChatRequest(SamplingOptions, frozen=True, kw_only=True):
    """OpenAI's chat request, as far as this node honours it. `user` is taken and not used.

    `continue_final_message` (not OpenAI's): go on with the last message, the assistant's, instead of opening a new one.
    """

    model: Name
    messages: Messages
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Choices | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | ChosenTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None
    store: Literal[False] | None = None
    user: str | None = None
    continue_final_message: bool = False


class CompletionsRequest(SamplingOptions, frozen=True, kw_only=True):
    """OpenAI's completions request: one text, its token ids, or a list of either. `user` is taken and not used."""

    model: Name
    prompt: str | Annotated[list[str | Token | Tokens], Meta(min_length=1, max_length=1_048_576)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=1_048_576)] | None = None
    n: Choices | None = None
    best_of: Choices | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    user: str | None = None


class EmbeddingsRequest(Body, frozen=True, kw_only=True):
    """OpenAI's embeddings request: one text, its token ids, or a list of either. `user` is taken and not used."""

    model: Name
    input: str | Annotated[list[str | Token | Tokens], Meta(min_length=1, max_length=65_536)]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


UNSUPPORTED_EMBEDDINGS = frozenset({"dimensions"})
UNSUPPORTED_COMPLETIONS = frozenset({"suffix"})
UNSUPPORTED_CHAT = frozenset(
    {
        *("functions", "function_call", "modalities", "audio", "prediction", "reasoning_effort", "service_tier", "metadata"),
        *("web_search_options", "verbosity", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("safety_identifier", "moderation"),
    }
)
"""OpenAI's fields that this node knows of and doesn't honour."""
