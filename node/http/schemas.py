"""The bodies and queries that this node takes. Unknown fields are refused; ranges stand here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from protocol import limits

Name = Annotated[str, Meta(min_length=1, max_length=limits.MAX_NAME, description="model id, or publisher/name@version, or a bare name")]
Count = Annotated[int, Meta(ge=1, le=1_048_576)]
Temperature = Annotated[float, Meta(ge=0, le=2, description="0 (also the default) is greedy")]
TopP = Annotated[float, Meta(gt=0, le=1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
StopList = Annotated[list[StopText], Meta(max_length=4)]
Role = Literal["system", "developer", "user", "assistant"]


class PlanQuery(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Parameters of GET /api/v1/models/{id}/plan: `tokens` of question and answer together; `force` plans beyond the round-trip budget."""

    tokens: Annotated[int, Meta(ge=1, le=4_194_304)] | None = None
    force: bool = False


class NoQuery(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """No parameters."""


class TextPart(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`refusal` is taken as null, because clients send a reply's message back as they got it."""

    role: Role
    content: str | list[TextPart]
    refusal: None = None

    def plain(self) -> dict[str, str]:
        """As the model's template wants it; `developer` is OpenAI's newer word for `system`."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


Messages = Annotated[list[ChatMessage], Meta(min_length=1, max_length=4096)]


class InferenceInput(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Either `text` (the model goes on with it) or `messages` (a chat, through the model's template). Of a model for text-classification
    `text` alone.
    """

    text: Annotated[str, Meta(min_length=1)] | None = None
    messages: Messages | None = None
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_048_576)] | None = None
    stop_sequences: StopList | None = None
    seed: Seed | None = None


class InferenceParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    stream: bool = False
    include_metadata: bool = True
    run_async: bool = msgspec.field(default=False, name="async")
    timeout_seconds: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    force: bool = False


class InferenceRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    input: InferenceInput
    parameters: InferenceParameters = InferenceParameters()
