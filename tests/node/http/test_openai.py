"""/v1 in OpenAI's shapes, plain and streamed."""

from __future__ import annotations

import base64
import struct
from typing import Any

import msgspec
import pytest

from node.http import openai_replies as replies
from protocol.errors import Unavailable
from tests.node.http.conftest import Site, Start
from tests.node.http.test_api_v1 import shaped
from tests.support.fake_gateway import MODEL, FakeGateway, refusal

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "ann/demo@1", "messages": [{"role": "user", "content": "The capital of France?"}]}


async def test_models(site: Site) -> None:
    _, body = await site.get("/v1/models")
    assert shaped(body, replies.OpenAIModels).data[0].id == MODEL.name
    _, one = await site.get("/v1/models/ann%2Fdemo@1")
    assert one == {"id": "ann/demo@1", "object": "model", "created": 1_700_000_000, "owned_by": "ann"}


async def test_a_plain_reply(site: Site) -> None:
    reply, body = await site.post(PATH, CHAT | {"max_completion_tokens": 5, "stop": "\n", "seed": 3, "n": 1, "user": "x"})
    assert reply.status == 200
    made = shaped(body, replies.ChatCompletion)
    assert made.choices[0].message.content == "Paris."
    assert (made.model, made.object, made.system_fingerprint) == ("ann/demo@1", "chat.completion", f"{MODEL.model_id}-bf16")
    assert (made.choices[0].finish_reason, made.usage.total_tokens) == ("stop", 10)
    assert "first_token;dur=600" in reply.headers["Server-Timing"]
    [asked] = site.gateway.asked
    assert (asked.max_tokens, asked.stop, asked.sampling.seed, asked.sampling.temperature) == (5, ("\n",), 3, 0.0)


async def test_the_replys_own_message_can_be_sent_back(site: Site) -> None:
    _, body = await site.post(PATH, CHAT)
    again = [*CHAT["messages"], body["choices"][0]["message"], {"role": "user", "content": "And of Spain?"}]
    assert (await site.post(PATH, CHAT | {"messages": again}))[0].status == 200


async def test_the_final_message_can_be_continued(site: Site) -> None:
    messages = [*CHAT["messages"], {"role": "assistant", "content": "It is"}]
    await site.post(PATH, CHAT | {"messages": messages, "continue_final_message": True})
    assert site.gateway.asked[0].continue_final


@pytest.mark.parametrize("usage", [True, False])
async def test_a_stream(site: Site, usage: bool) -> None:
    options = {"stream": True} | ({"stream_options": {"include_usage": True}} if usage else {})
    reply, events = await site.events(PATH, CHAT | options)
    assert reply.headers["X-MF-Route"].startswith("pipeline;12D3KooWAlpha[0-10]")
    assert events[-1] == (None, "[DONE]")
    chunks = [msgspec.json.decode(data) for _, data in events[:-1]]
    assert all(name is None for name, _ in events)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "Par"}, {"content": "is"}, {"content": "."}, {}]
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]] == [None] * 4 + ["stop"]
    assert ["mf" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1]["mf"]["timings_ms"]["total"] == 1501
    if usage:
        assert [chunk["usage"] for chunk in chunks] == [None] * 5 + [{"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}]
        assert chunks[-1]["choices"] == []
    else:
        assert not any("usage" in chunk for chunk in chunks)


async def test_a_stream_counts_as_it_goes_where_that_is_asked(site: Site) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    for path, asked in ((PATH, CHAT), ("/v1/completions", {"model": "ann/demo@1", "prompt": "The capital"})):
        _, events = await site.events(path, asked | options)
        chunks = [msgspec.json.decode(data) for _, data in events[:-1]]
        said = [chunk["usage"] for chunk in chunks if chunk["choices"] and _text_of(chunk["choices"][0])]
        assert [(one["prompt_tokens"], one["completion_tokens"]) for one in said] == [(7, 1), (7, 2), (7, 3)]
        assert chunks[-1]["usage"]["completion_tokens"] == 3
    alone = {"stream": True, "stream_options": {"continuous_usage_stats": True}}
    for path, wrong in ((PATH, CHAT | alone), ("/v1/responses", {"model": "ann/demo@1", "input": "x"} | options)):
        reply, body = await site.post(path, wrong)
        assert (reply.status, body["error"]["param"]) == (400, "stream_options.continuous_usage_stats")


def _text_of(choice: dict[str, Any]) -> str:
    return choice.get("text") or choice.get("delta", {}).get("content") or ""


async def test_an_unknown_model(site: Site) -> None:
    for stream in (False, True):
        reply, body = await site.post(PATH, CHAT | {"model": "ann/dmo", "stream": stream})
        assert reply.status == 404
        error = shaped(body, replies.OpenAIFailure).error
        assert (error.code, error.param, error.type) == ("model_not_found", "model", "invalid_request_error")
        assert "did you mean ann/demo@1?" in error.message


async def test_too_few_shards_is_503_and_says_which(start: Start) -> None:
    site = await start(FakeGateway(early=refusal(Unavailable)))
    reply, body = await site.post(PATH, CHAT | {"stream": True})
    assert (reply.status, body["error"]["type"]) == (503, "server_error")
    assert "layer.3" in body["error"]["message"]


async def test_an_error_in_a_stream_ends_it_without_done(start: Start) -> None:
    site = await start(FakeGateway(late=refusal(Unavailable)))
    _, events = await site.events(PATH, CHAT | {"stream": True})
    assert msgspec.json.decode(events[-1][1])["error"]["code"] == "unavailable"
    assert "[DONE]" not in [data for _, data in events]


TOKENS = [[1, 2, 3], [4]]


@pytest.mark.parametrize(
    ("given", "inputs"),
    [("Hello", ["Hello"]), (["a", "bc"], ["a", "bc"]), ([5, 6], [[5, 6]]), (TOKENS, TOKENS)],
)
async def test_embeddings(site: Site, given: Any, inputs: list[Any]) -> None:
    reply, body = await site.post("/v1/embeddings", {"model": "ann/demo@1", "input": given})
    assert reply.status == 200
    made = shaped(body, replies.EmbeddingList)
    assert [one.embedding for one in made.data] == [[number, len(one)] for number, one in enumerate(inputs)]
    assert (made.model, made.object, made.usage.total_tokens) == ("ann/demo@1", "list", sum(len(one) for one in inputs))
    assert site.gateway.embedded[0].inputs == inputs


async def test_embeddings_in_base64(site: Site) -> None:
    _, body = await site.post("/v1/embeddings", {"model": "ann/demo@1", "input": "abc", "encoding_format": "base64"})
    assert struct.unpack("<2f", base64.b64decode(body["data"][0]["embedding"])) == (0, 3)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": 7}, "input"),
        ({"dimensions": 64}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
    ],
)
async def test_embeddings_that_make_no_sense(site: Site, change: dict[str, Any], param: str) -> None:
    reply, body = await site.post("/v1/embeddings", {"model": "ann/demo@1", "input": "a"} | change)
    assert reply.status == 400
    assert body["error"]["param"].startswith(param)
    assert site.gateway.embedded == []


async def test_embeddings_of_an_unknown_model(site: Site) -> None:
    reply, body = await site.post("/v1/embeddings", {"model": "ann/dmo", "input": "a"})
    assert (reply.status, body["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/nothing"])
async def test_what_isnt_there_is_404_in_openais_shape(site: Site, path: str) -> None:
    status, body = await site.get(path)
    assert status == 404
    assert body["error"]["code"] == "no_such_path"


async def test_a_wrong_method_is_405(site: Site) -> None:
    status, body = await site.get(PATH)
    assert status == 405
    assert "POST" in body["error"]["message"]
