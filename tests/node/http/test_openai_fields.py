"""Each field that OpenAI documents is either honoured or refused by its name; any other is refused too."""

from __future__ import annotations

from typing import Any

import pytest

from node.http import openai_schemas as schemas
from node.http import responses_schemas as responses
from tests.node.http.conftest import Site

ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/completions": {"prompt": "x"},
    "/v1/embeddings": {"input": "x"},
    "/v1/responses": {"input": "x"},
}
BODIES: dict[str, tuple[Any, frozenset[str]]] = {
    "/v1/chat/completions": (schemas.ChatRequest, schemas.UNSUPPORTED_CHAT),
    "/v1/completions": (schemas.CompletionsRequest, schemas.UNSUPPORTED_COMPLETIONS),
    "/v1/embeddings": (schemas.EmbeddingsRequest, schemas.UNSUPPORTED_EMBEDDINGS),
    "/v1/responses": (responses.ResponsesRequest, responses.UNSUPPORTED_RESPONSES),
}
_SAMPLING = "frequency_penalty presence_penalty logit_bias seed stop temperature top_p stream stream_options n logprobs user model"
DOCUMENTED = {
    "/v1/chat/completions": f"""{_SAMPLING} messages max_tokens max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls
        response_format store metadata audio modalities prediction reasoning_effort verbosity service_tier web_search_options functions
        function_call prompt_cache_key prompt_cache_retention safety_identifier""",
    "/v1/completions": f"{_SAMPLING} prompt best_of echo max_tokens suffix",
    "/v1/embeddings": "model input dimensions encoding_format user",
    "/v1/responses": """model input instructions stream stream_options max_output_tokens temperature top_p top_logprobs include tools
        tool_choice parallel_tool_calls text metadata truncation store background user previous_response_id conversation prompt reasoning
        service_tier max_tool_calls prompt_cache_key safety_identifier""",
}


@pytest.mark.parametrize("path", ASKS)
def test_every_documented_field_is_known(path: str) -> None:
    kind, unsupported = BODIES[path]
    honoured = set(kind.__struct_encode_fields__)
    assert set(DOCUMENTED[path].split()) <= honoured | unsupported
    assert not honoured & unsupported


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, (_kind, names) in BODIES.items() for name in sorted(names)])
async def test_what_isnt_honoured_is_refused_by_name(site: Site, path: str, name: str) -> None:
    reply, body = await site.post(path, {"model": "ann/demo@1", **ASKS[path], name: None})
    assert (reply.status, body["error"]["param"]) == (400, name)
    assert f"not supported by this node: {name}" in body["error"]["message"]
    assert not site.gateway.asked


@pytest.mark.parametrize("path", ASKS)
async def test_what_nobody_knows_is_refused_by_name(site: Site, path: str) -> None:
    reply, body = await site.post(path, {"model": "ann/demo@1", **ASKS[path], "colour": "red"})
    assert (reply.status, body["error"]["param"], body["error"]["type"]) == (400, "colour", "invalid_request_error")
    assert "unknown option: colour" in body["error"]["message"]
    assert not site.gateway.asked
