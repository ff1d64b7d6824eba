"""Chats with tools, formats, logarithms and several choices."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from node.http import openai_replies as replies
from protocol.messages import Grammar, LogitBias
from tests.node.http.conftest import Site, Start
from tests.node.http.test_api_v1 import shaped
from tests.support.fake_gateway import FakeGateway

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "ann/demo@1", "messages": [{"role": "user", "content": "The weather in Paris?"}]}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells the weather", "parameters": PARAMETERS}}
CALL = ['<tool_call>{"name": "wea', 'ther", "arguments": {"ci', 'ty": "Paris"}}</tool', "_call>"]


async def test_sampling_goes_through_whole(site: Site) -> None:
    asked = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "frequency_penalty": 1, "presence_penalty": -1, "seed": -1}
    await site.post(PATH, CHAT | asked | {"repetition_penalty": 1.5, "logit_bias": {"7": -100, "9": 2.5}})
    sampling = site.gateway.asked[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (0.5, 0.9, 5, 0.1, 2**63 - 1)
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.repetition_penalty) == (1, -1, 1.5)
    assert sampling.logit_bias == [LogitBias(7, -100), LogitBias(9, 2.5)]
    assert (sampling.logprobs, sampling.grammar) == (None, None)


async def test_several_choices_count_their_prompt_once_and_their_seed_up(site: Site) -> None:
    reply, body = await site.post(PATH, CHAT | {"n": 3, "seed": 5})
    assert reply.status == 200
    made = shaped(body, replies.ChatCompletion)
    assert [choice.index for choice in made.choices] == [0, 1, 2]
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (7, 9)
    assert sorted(asked.sampling.seed or 0 for asked in site.gateway.asked) == [5, 6, 7]


async def test_streamed_choices_each_begin_and_finish(site: Site) -> None:
    _, events = await site.events(PATH, CHAT | {"n": 2, "stream": True, "stream_options": {"include_usage": True}})
    assert events[-1] == (None, "[DONE]")
    chunks = [msgspec.json.decode(data) for _, data in events[:-1]]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 6)
    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in chunks[:-1] if chunk["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == "Paris."
        assert [choice["finish_reason"] for choice in own][-1] == "stop"


@pytest.mark.parametrize("top", [None, 0, 2])
async def test_logarithms(site: Site, top: int | None) -> None:
    _, body = await site.post(PATH, CHAT | {"logprobs": True} | ({} if top is None else {"top_logprobs": top}))
    content = shaped(body, replies.ChatCompletion).choices[0].logprobs.content  # type: ignore[union-attr]
    assert [(one.token, one.logprob, one.bytes) for one in content[:1]] == [("Par", -0.25, list(b"Par"))]
    assert [len(one.top_logprobs) for one in content] == [top or 0] * 3
    _, events = await site.events(PATH, CHAT | {"logprobs": True, "stream": True})
    streamed = [msgspec.json.decode(data)["choices"][0]["logprobs"] for _, data in events[:-1]]
    assert [one["token"] for part in streamed if part for one in part["content"]] == ["Par", "is", "."]


async def test_tools_go_to_the_template_and_calls_come_back(start: Start) -> None:
    site = await start(FakeGateway(words=["Let me see. ", *CALL]))
    reply, body = await site.post(PATH, CHAT | {"tools": [TOOL]})
    assert reply.status == 200
    choice = shaped(body, replies.ChatCompletion).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see. ")
    [call] = choice.message.tool_calls  # type: ignore[misc]
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
    assert site.gateway.asked[0].tools == [TOOL]
    assert site.gateway.asked[0].sampling.grammar is None


async def test_streamed_calls_come_in_parts_under_one_id(start: Start) -> None:
    site = await start(FakeGateway(words=CALL))
    _, events = await site.events(PATH, CHAT | {"tools": [TOOL], "stream": True})
    choices = [msgspec.json.decode(data)["choices"][0] for _, data in events[:-1]]
    deltas = [delta for choice in choices for delta in choice["delta"].get("tool_calls", [])]
    assert deltas[0]["id"].startswith("call_")
    assert (deltas[0]["type"], deltas[0]["function"], deltas[0]["index"]) == ("function", {"name": "weather", "arguments": ""}, 0)
    assert all("id" not in delta and "name" not in delta["function"] for delta in deltas[1:])
    assert len(deltas) > 2
    assert json.loads("".join(delta["function"]["arguments"] for delta in deltas)) == {"city": "Paris"}
    assert choices[-1]["finish_reason"] == "tool_calls"


async def test_a_call_and_its_answer_go_back_as_the_template_wants_them(start: Start) -> None:
    site = await start(FakeGateway(words=CALL))
    _, body = await site.post(PATH, CHAT | {"tools": [TOOL]})
    message = body["choices"][0]["message"]
    answer = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "Rain"}
    reply, _ = await site.post(PATH, CHAT | {"tools": [TOOL], "messages": [*CHAT["messages"], message, answer]})
    assert reply.status == 200
    _, called, told = site.gateway.asked[1].messages or []
    assert called["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Paris"}}
    assert (called["content"], told["role"], told["content"]) == ("", "tool", "Rain")


async def test_no_tools_where_none_may_be_called(site: Site) -> None:
    await site.post(PATH, CHAT | {"tools": [TOOL], "tool_choice": "none"})
    assert site.gateway.asked[0].tools is None


async def test_a_named_call_is_held_to_its_parameters(start: Start) -> None:
    site = await start(FakeGateway(words=['{"city": ', '"Paris"}']))
    chosen = {"type": "function", "function": {"name": "weather"}}
    _, body = await site.post(PATH, CHAT | {"tools": [TOOL], "tool_choice": chosen})
    assert site.gateway.asked[0].sampling.grammar == Grammar(kind="json_schema", text=msgspec.json.encode(PARAMETERS).decode())
    choice = body["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}


async def test_a_required_call_is_held_to_one_of_the_tools(start: Start) -> None:
    site = await start(FakeGateway(words=['{"name": "weather", ', '"arguments": {"city": "Paris"}}']))
    _, body = await site.post(PATH, CHAT | {"tools": [TOOL], "tool_choice": "required"})
    grammar = site.gateway.asked[0].sampling.grammar
    assert grammar is not None
    assert json.loads(grammar.text)["anyOf"][0]["properties"] == {"name": {"const": "weather"}, "arguments": PARAMETERS}
    assert body["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_cut_off_in_a_call_says_length(start: Start, stream: bool) -> None:
    site = await start(FakeGateway(words=CALL[:2], reason="length"))
    body = CHAT | {"tools": [TOOL], "stream": stream}
    if stream:
        _, events = await site.events(PATH, body)
        assert msgspec.json.decode(events[-2][1])["choices"][0]["finish_reason"] == "length"
    else:
        assert (await site.post(PATH, body))[1]["choices"][0]["finish_reason"] == "length"


async def test_formats(site: Site) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for given in ({"type": "text"}, {"type": "json_object"}, wanted):
        assert (await site.post(PATH, CHAT | {"response_format": given}))[0].status == 200
    plain, some, exact = (asked.sampling.grammar for asked in site.gateway.asked)
    assert (plain, some) == (None, Grammar(kind="json"))
    assert exact is not None
    assert json.loads(exact.text) == schema
    await site.post(PATH, CHAT | {"response_format": wanted, "tools": [TOOL]})
    either = json.loads(site.gateway.asked[3].sampling.grammar.text)["anyOf"]  # type: ignore[union-attr]
    assert either[1]["properties"]["a"]["$ref"] == "#/anyOf/1/$defs/a"
    assert either[0]["properties"]["name"] == {"const": "weather"}


async def test_one_choice_that_fails_ends_all(start: Start) -> None:
    gateway = FakeGateway(late=msgspec_error())
    site = await start(gateway)
    reply, body = await site.post(PATH, CHAT | {"n": 2})
    assert (reply.status, body["error"]["type"]) == (500, "server_error")


def msgspec_error() -> Exception:
    return RuntimeError("nobody foresaw this")
