"""A wrong body is told which field is wrong; nothing else is ever asked of the gateway."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.http.bodies import parse_json
from node.http.openai_schemas import ChatRequest, CompletionsRequest
from node.http.responses_schemas import ResponsesRequest
from node.http.schemas import InferenceRequest
from protocol.errors import BadInput
from tests.node.http.conftest import Site

SAY = [{"role": "user", "content": "hi"}]
JSON = {"Content-Type": "application/json"}
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "not JSON"}}
WRONG_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"temprature": 1}, "temprature"),
    ({"functions": []}, "functions"),
    ({"n": 17}, "n"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"frequency_penalty": 2.5}, "frequency_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"7": 101}}, "logit_bias[...]"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[...].function.name"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"store": True}, "store"),
    ({"messages": [{"role": "assistant"}]}, "messages[...].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[...].tool_call_id"),
    ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "messages[...].tool_calls[...].function.arguments"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 4, "max_completion_tokens": 4}, "max_tokens"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [1]}, "stop[...]"),
    ({"seed": "x"}, "seed"),
    ({"stream": 1}, "stream"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"continue_final_message": True}, "continue_final_message"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[...].role"),
    ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[...].name"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[...].content[...].type"),
    ({"model": "m" * 513}, "model"),
    ({"model": 5}, "model"),
]
WRONG_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": {}}, "input"),
    ({"input": {"text": "a", "messages": SAY}}, "input"),
    ({"input": {"text": "a", "stop": "b"}}, "input.stop"),
    ({"input": {"text": ""}}, "input.text"),
    ({"input": {"text": "a"}, "extra": 1}, "extra"),
    ({"input": {"text": "a"}, "parameters": {"timeout_seconds": 0}}, "parameters.timeout_seconds"),
    ({"input": {"text": "a"}, "parameters": {"asink": True}}, "parameters.asink"),
]


def _same(param: str, expected: str) -> bool:
    """msgspec writes an index or dots, by version and kind."""
    return param.replace("[0]", "[...]") == expected


@pytest.mark.parametrize(("change", "param"), WRONG_CHATS)
async def test_chat_names_the_wrong_field(site: Site, change: dict[str, Any], param: str) -> None:
    reply, body = await site.post("/v1/chat/completions", {"model": "ann/demo@1", "messages": SAY} | change)
    assert reply.status == 400
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", "bad_request")
    assert _same(error["param"], param)
    assert param.split(".")[-1].split("[")[0] in error["message"]
    assert not site.gateway.asked


@pytest.mark.parametrize(("given_body", "param"), WRONG_INPUTS)
async def test_inference_names_the_wrong_field(site: Site, given_body: dict[str, Any], param: str) -> None:
    reply, body = await site.post("/api/v1/models/ann%2Fdemo@1/inference", given_body)
    assert reply.status == 400
    assert body["status"] == "error"
    assert _same(body["error"]["details"]["param"], param)
    assert not site.gateway.asked


async def test_all_unknown_options_are_named_and_known_ones_told_apart(site: Site) -> None:
    body = {"model": "m", "messages": SAY, "functions": [], "foo": 1, "bar": 2}
    _, answer = await site.post("/v1/chat/completions", body)
    assert "not supported by this node: functions" in answer["error"]["message"]
    assert "unknown option: foo, bar" in answer["error"]["message"]


@pytest.mark.parametrize("raw", [b"", b"{", b'{"model": NaN}', b"\xff\xfe", b'{"model":"\\ud800"}', b"[" * 100_000, b'{"x":' * 100_000])
async def test_malformed_json_is_a_plain_400(site: Site, raw: bytes) -> None:
    for path in ("/v1/chat/completions", "/api/v1/models/m/inference"):
        reply, _ = await site.call("POST", path, data=raw, headers=JSON)
        assert reply.status == 400


@pytest.mark.parametrize("query", ["page=0", "limit=101", "limit=x", "limit=", "colour=red", "page=1&page=2"])
async def test_a_wrong_query_is_named(site: Site, query: str) -> None:
    status, body = await site.get(f"/api/v1/models?{query}")
    assert status == 400
    assert body["error"]["details"]["param"] == query.split("=")[0]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_struct_or_bad_input(raw: bytes) -> None:
    for kind in (ChatRequest, CompletionsRequest, ResponsesRequest, InferenceRequest):
        with suppress(BadInput):
            assert isinstance(parse_json(raw, kind), kind)


_JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(ChatRequest.__struct_encode_fields__), _JSON_VALUES)
def test_any_value_in_any_field_is_taken_or_named(name: str, value: Any) -> None:
    body = {"model": "m", "messages": SAY} | {name: value}
    blamed = name
    try:
        parse_json(msgspec.json.encode(body), ChatRequest)
    except BadInput as error:
        blamed = str(error.details["param"])
    assert blamed.startswith(name)
