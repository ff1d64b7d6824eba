"""Responses without memory: items in, items out, and the events of each."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from node.http import openai_replies as replies
from protocol.errors import Unavailable
from tests.node.http.conftest import Site, Start
from tests.node.http.test_api_v1 import shaped
from tests.support.fake_gateway import FakeGateway, refusal

PATH = "/v1/responses"
ASK: dict[str, Any] = {"model": "ann/demo@1", "input": "The weather in Paris?"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
CALL = ["I look. ", '<tool_call>{"name": "weather", "arguments": {"ci', 'ty": "Paris"}}</tool_call>']


async def test_a_text(site: Site) -> None:
    reply, body = await site.post(PATH, ASK | {"instructions": "Be short.", "max_output_tokens": 9, "metadata": {"a": "b"}, "store": False})
    assert reply.status == 200
    made = shaped(body, replies.Response)
    [message] = made.output
    assert isinstance(message, replies.OutputMessage)
    assert (message.content[0].text, message.status, made.status) == ("Paris.", "completed", "completed")
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens) == (7, 3)
    assert (made.metadata, made.instructions, made.store) == ({"a": "b"}, "Be short.", False)
    [asked] = site.gateway.asked
    assert asked.messages == [{"role": "system", "content": "Be short."}, {"role": "user", "content": ASK["input"]}]
    assert asked.max_tokens == 9


async def test_a_call_and_back(start: Start) -> None:
    site = await start(FakeGateway(words=CALL))
    _, body = await site.post(PATH, ASK | {"tools": [TOOL]})
    message, call = shaped(body, replies.Response).output
    assert isinstance(message, replies.OutputMessage)
    assert isinstance(call, replies.OutputCall)
    assert (message.content[0].text, call.name, json.loads(call.arguments)) == ("I look. ", "weather", {"city": "Paris"})
    answer = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}
    again = [{"role": "user", "content": [{"type": "input_text", "text": "?"}]}, *body["output"], answer]
    reply, _ = await site.post(PATH, ASK | {"tools": [TOOL], "input": again})
    assert reply.status == 200
    _, said, told = site.gateway.asked[1].messages or []
    assert (said["content"], said["tool_calls"][0]["function"]["arguments"]) == ("I look. ", {"city": "Paris"})
    assert (told["role"], told["content"], told["tool_call_id"]) == ("tool", "Rain", call.call_id)
    assert site.gateway.asked[1].tools[0]["function"]["name"] == "weather"  # type: ignore[index]


async def test_the_events_of_a_stream_build_up_to_the_response(start: Start) -> None:
    site = await start(FakeGateway(words=CALL))
    _, events = await site.events(PATH, ASK | {"tools": [TOOL], "stream": True})
    told = [msgspec.json.decode(data) for _, data in events]
    assert [name for name, _ in events] == [event["type"] for event in told]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    kinds = [event["type"].removeprefix("response.") for event in told]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done", "output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.delta", "function_call_arguments.done", "output_item.done", "completed"),
    ]
    assert told[0]["response"]["status"] == "in_progress"
    assert "".join(event["delta"] for event in told if event["type"].endswith("arguments.delta")) == '{"city": "Paris"}'
    last = shaped(told[-1]["response"], replies.Response)
    assert [item["item"] for item in told if item["type"] == "response.output_item.done"] == msgspec.to_builtins(last.output)
    assert last.status == "completed"


async def test_cut_off_is_incomplete(start: Start) -> None:
    site = await start(FakeGateway(reason="length"))
    _, body = await site.post(PATH, ASK)
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    _, events = await site.events(PATH, ASK | {"stream": True})
    assert events[-1][0] == "response.incomplete"


async def test_a_failure_in_a_stream_is_an_event(start: Start) -> None:
    site = await start(FakeGateway(late=refusal(Unavailable)))
    _, events = await site.events(PATH, ASK | {"stream": True})
    assert [name for name, _ in events][-2:] == ["response.failed", "error"]
    assert msgspec.json.decode(events[-2][1])["response"]["status"] == "failed"


async def test_logarithms_and_formats(site: Site) -> None:
    text = {"format": {"type": "json_schema", "name": "x", "schema": PARAMETERS, "strict": True}}
    _, body = await site.post(PATH, ASK | {"include": ["message.output_text.logprobs"], "top_logprobs": 1, "text": text})
    logprobs = body["output"][0]["content"][0]["logprobs"]
    assert [one["token"] for one in logprobs] == ["Par", "is", "."]
    assert json.loads(site.gateway.asked[0].sampling.grammar.text) == PARAMETERS  # type: ignore[union-attr]
    assert body["text"] == text


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": []}, "input"),
        ({"input": [{"type": "message"}]}, "input[0].content"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"role": "user", "content": "x", "output": "y"}]}, "input[0].output"),
        ({"tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_what_makes_no_sense_is_named(site: Site, change: dict[str, Any], param: str) -> None:
    reply, body = await site.post(PATH, ASK | change)
    assert reply.status == 400
    assert body["error"]["param"].startswith(param)
    assert site.gateway.asked == []
