"""Texts and token ids that go on: plain, streamed, echoed, with logarithms."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from node.http import openai_replies as replies
from tests.node.http.conftest import Site
from tests.node.http.test_api_v1 import shaped

PATH = "/v1/completions"
ASK: dict[str, Any] = {"model": "ann/demo@1", "prompt": "The capital of France is "}


async def test_a_plain_completion(site: Site) -> None:
    reply, body = await site.post(PATH, ASK | {"stop": ["\n"], "seed": 1, "user": "x"})
    assert reply.status == 200
    made = shaped(body, replies.Completion)
    assert (made.choices[0].text, made.choices[0].finish_reason, made.object) == ("Paris.", "stop", "text_completion")
    [asked] = site.gateway.asked
    assert (asked.text, asked.max_tokens, asked.stop, asked.messages, asked.echo) == (ASK["prompt"], 16, ("\n",), None, False)


async def test_prompts_times_choices(site: Site) -> None:
    _, body = await site.post(PATH, ASK | {"prompt": [[5, 6], [7]], "n": 2})
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert sorted(asked.tokens or [] for asked in site.gateway.asked) == [[5, 6], [5, 6], [7], [7]]
    assert body["usage"] == {"prompt_tokens": 14, "completion_tokens": 12, "total_tokens": 26}


async def test_an_echo_with_logarithms(site: Site) -> None:
    _, body = await site.post(PATH, ASK | {"prompt": "Prompt", "echo": True, "logprobs": 1})
    choice = body["choices"][0]
    assert choice["text"] == "PromptParis."
    assert choice["logprobs"]["tokens"] == ["Prompt", "Par", "is", "."]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.25, -0.5, -0.75]
    assert choice["logprobs"]["top_logprobs"][:2] == [None, {"Par": -0.25}]
    assert choice["logprobs"]["text_offset"] == [0, 6, 9, 11]


async def test_an_echo_and_nothing_new(site: Site) -> None:
    _, body = await site.post(PATH, ASK | {"prompt": "Prompt", "echo": True, "logprobs": 0, "max_tokens": 0})
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]["tokens"]) == ("Prompt", "length", ["Prompt"])
    assert body["usage"]["completion_tokens"] == 0


async def test_a_stream(site: Site) -> None:
    _, events = await site.events(PATH, ASK | {"stream": True, "logprobs": 0, "stream_options": {"include_usage": True}})
    assert events[-1] == (None, "[DONE]")
    chunks = [msgspec.json.decode(data) for _, data in events[:-1]]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "Paris."
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "stop"]
    assert [at for chunk in chunks[:3] for at in chunk["choices"][0]["logprobs"]["text_offset"]] == [0, 3, 5]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 10)
    assert chunks[-1]["mf"]["kind"] == "pipeline"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 8}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"stream_options": {}}, "stream_options"),
    ],
)
async def test_what_makes_no_sense_is_named(site: Site, change: dict[str, Any], param: str) -> None:
    reply, body = await site.post(PATH, ASK | change)
    assert reply.status == 400
    assert body["error"]["param"] == param
    assert site.gateway.asked == []
