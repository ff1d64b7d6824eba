"""The body of `/v1/responses`: stateless, so everything of the conversation comes with each request."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from node.http.openai_schemas import Body, CallId, Metadata, Schema, StreamOptions, ToolName
from node.http.schemas import Count, Name, TopP


class InputText(Body, frozen=True, kw_only=True):
    """`input_text` of a user, `output_text` of an earlier reply."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputItem(Body, frozen=True, kw_only=True):
    """A message (`role`, `content`), a `function_call` of an earlier reply, or a `function_call_output`."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[InputText] | None = None
    call_id: CallId | None = None
    name: ToolName | None = None
    arguments: str | None = None
    output: str | list[InputText] | None = None


class ResponsesTool(Body, frozen=True, kw_only=True):
    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class ResponsesChoice(Body, frozen=True, kw_only=True):
    type: Literal["function"]
    name: ToolName


class PlainText(Body, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Any text."""


class SomeJson(Body, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """Some JSON object."""


class SchemaJson(Body, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON of this schema."""

    name: ToolName
    schema: Schema
    description: str | None = None
    strict: bool | None = None


class TextOptions(Body, frozen=True, kw_only=True):
    format: PlainText | SomeJson | SchemaJson | None = None


class ResponsesRequest(Body, frozen=True, kw_only=True):
    """OpenAI's responses request, as far as this node honours it. Nothing is kept: `store` true is refused.

    `user` is taken and not used.
    """

    model: Name
    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=4096)]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    tools: Annotated[list[ResponsesTool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponsesChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    metadata: Metadata | None = None
    truncation: Literal["disabled"] | None = None
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    user: str | None = None


UNSUPPORTED_RESPONSES = frozenset(
    {
        *("previous_response_id", "conversation", "prompt", "reasoning", "service_tier", "max_tool_calls"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "context_management"),
        *("access_programs", "background_options", "image", "moderation"),
    }
)
"""OpenAI's fields that this node knows of and doesn't honour."""
