"""What Ollama's paths answer with. Durations are nanoseconds; a node's own figures where Ollama has no word for them are left out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from node.gateway import Finished, ModelInfo
from node.http.errors import timestamp


class OllamaFailure(msgspec.Struct, kw_only=True):
    error: str


class Version(msgspec.Struct, kw_only=True):
    version: str


class Details(msgspec.Struct, kw_only=True):
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str = ""
    parent_model: str = ""


class ListedModel(msgspec.Struct, kw_only=True):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Tags(msgspec.Struct, kw_only=True):
    models: list[ListedModel]


class RunningModel(msgspec.Struct, kw_only=True):
    """`size` is what its stages loaded here take, all of it beside the processor."""

    name: str
    model: str
    digest: str
    size: int
    size_vram: int = 0
    expires_at: None = None


class Running(msgspec.Struct, kw_only=True):
    models: list[RunningModel]


class Shown(msgspec.Struct, kw_only=True):
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    license: str = ""
    modelfile: str = ""
    parameters: str = ""
    template: str = ""
    modified_at: str = ""


class Function(msgspec.Struct, kw_only=True):
    name: str
    arguments: dict[str, Any]


class Call(msgspec.Struct, kw_only=True):
    function: Function


class ReplyMessage(msgspec.Struct, kw_only=True, omit_defaults=True):
    content: str
    tool_calls: list[Call] | None = None
    role: str = msgspec.field(default_factory=lambda: "assistant")


class Done(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A reply, and each line of one that is streamed; the durations and counts are on the last."""

    model: str
    created_at: str
    done: bool
    message: ReplyMessage | None = None
    response: str | None = None
    done_reason: str | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


def listed(info: ModelInfo) -> ListedModel:
    made = datetime.fromtimestamp(info.created_at or 0, UTC).isoformat().replace("+00:00", "Z")
    name = info.name or info.model_id
    return ListedModel(name=name, model=name, modified_at=made, size=info.size_bytes, digest=info.model_id, details=details(info))


def details(info: ModelInfo) -> Details:
    family = (info.architecture or "").removesuffix("ForCausalLM").lower()
    return Details(format="safetensors", family=family, families=[family] if family else [], parameter_size=size_text(info.parameters))


def size_text(count: int) -> str:
    """135000000 as 135.00M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.2f}{unit}"
    return str(count)


def shown(info: ModelInfo) -> Shown:
    made = datetime.fromtimestamp(info.created_at or 0, UTC).isoformat().replace("+00:00", "Z")
    known = {"general.architecture": info.architecture, "general.parameter_count": info.parameters, "general.context_length": info.context}
    return Shown(
        details=details(info), model_info=known, capabilities=["completion", "tools"], license=info.license or "", modified_at=made
    )


def last(model: str, end: Finished, **part: Any) -> Done:
    seconds = end.timings
    first, total = seconds.get("first_token", 0.0), seconds.get("total", 0.0)
    loading = seconds.get("assemble", 0.0) + seconds.get("load", 0.0)
    return Done(
        model=model,
        created_at=timestamp(),
        done=True,
        done_reason=end.reason,
        total_duration=int(total * 1e9),
        load_duration=int(loading * 1e9),
        prompt_eval_count=end.prompt_tokens,
        prompt_eval_duration=int(max(0.0, first - loading) * 1e9),
        eval_count=end.completion_tokens,
        eval_duration=int(max(0.0, total - first) * 1e9),
        **part,
    )
