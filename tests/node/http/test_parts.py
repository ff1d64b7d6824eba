"""Requests with several replies in them: what they take of the allowance, how many run side by side, and that all of them come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from node.gateway import Event, GenerationRequest, Planned
from tests.node.http.test_access import CHAT, Keyed, KeyedSite, bearer, keyed
from tests.support.fake_gateway import FakeGateway
from tests.support.wait import until

__all__ = ["keyed"]
INFER = "/api/v1/models/ann%2Fdemo@1/inference"


@dataclass
class Counting(FakeGateway):
    """Knows how many replies are made at the same time; one asked for `stay` never ends."""

    running: int = 0
    most: int = 0

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async with aclosing(super().generate(request)) as events:  # type: ignore[type-var]
                async for event in events:
                    yield event
                    if request.text == "stay" and isinstance(event, Planned):
                        await asyncio.Event().wait()
                    await asyncio.sleep(0.005)
        finally:
            self.running -= 1


async def begin(keyed: Keyed) -> tuple[KeyedSite, Counting, dict[str, str]]:
    gateway = Counting()
    site = await keyed(gateway=gateway)
    return site, gateway, bearer((await site.register())["api_key"])


async def left(site: KeyedSite, mine: dict[str, str]) -> tuple[int, int]:
    """(requests of the hour that are left, tokens of the month that are used)."""
    limits = (await site.get("/api/v1/users/me/usage", headers=mine))[1]["data"]["rate_limits"]
    return limits["requests_remaining"], limits["tokens_this_month"]


@pytest.mark.parametrize(
    ("path", "body", "replies"),
    [
        ("/v1/chat/completions", CHAT | {"n": 3}, 3),
        ("/v1/completions", {"model": "ann/demo@1", "prompt": ["a", "b"], "n": 2}, 4),
        ("/v1/chat/completions", CHAT, 1),
        ("/v1/embeddings", {"model": "ann/demo@1", "input": ["a", "b", "c"]}, 1),
        ("/api/v1/inference/compare", {"models": ["ann/demo@1", "ann/demo@1"], "input": {"text": "x"}}, 2),
        (f"{INFER}/batch", {"inputs": [{"id": str(number), "text": str(number)} for number in range(7)]}, 7),
    ],
)
async def test_each_reply_is_a_request_of_the_hour(keyed: Keyed, path: str, body: dict[str, Any], replies: int) -> None:
    site, gateway, mine = await begin(keyed)
    reply, answer = await site.post(path, body, headers=mine)
    assert reply.status == 200, answer
    tokens = 3 if "embeddings" in path else 10 * replies
    assert await left(site, mine) == (100 - replies, tokens)
    assert gateway.most <= 5
    assert site.home.accounts.windows._uses["address:127.0.0.1"].running == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_more_choices_than_places_all_come_in_turns(keyed: Keyed, stream: bool) -> None:
    site, gateway, mine = await begin(keyed)
    asked = CHAT | {"n": 12, "stream": stream} | ({"stream_options": {"include_usage": True}} if stream else {})
    reply, raw = await site.call("POST", "/v1/chat/completions", json=asked, headers=mine)
    assert (reply.status, gateway.most) == (200, 5)
    if stream:
        chunks = [msgspec.json.decode(line[6:]) for line in raw.decode().splitlines() if line.startswith("data: {")]
        texts = ["".join(one["delta"].get("content") or "" for chunk in chunks for one in chunk["choices"] if one["index"] == index)
                 for index in range(12)]  # fmt: skip
        usage = chunks[-1]["usage"]
    else:
        answer = msgspec.json.decode(raw)
        texts, usage = [choice["message"]["content"] for choice in answer["choices"]], answer["usage"]
    assert texts == ["Paris."] * 12
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7, 36)


async def test_prompts_that_come_in_turns_are_counted_once_each(keyed: Keyed) -> None:
    site, _gateway, mine = await begin(keyed)
    asked = {"model": "ann/demo@1", "prompt": list("abcdefgh"), "stream": True,
             "stream_options": {"include_usage": True, "continuous_usage_stats": True}}  # fmt: skip
    _, raw = await site.call("POST", "/v1/completions", json=asked, headers=mine)
    told = [msgspec.json.decode(line[6:])["usage"]["prompt_tokens"] for line in raw.decode().splitlines() if line.startswith("data: {")]
    assert told[-1] == 56
    assert told == sorted(told)


async def test_choices_are_taken_together_or_not_at_all(keyed: Keyed) -> None:
    site, gateway, mine = await begin(keyed)
    for _ in range(90):
        await site.post("/v1/chat/completions", CHAT, headers=mine)
    reply, body = await site.post("/v1/chat/completions", CHAT | {"n": 16}, headers=mine)
    assert (reply.status, body["error"]["code"], len(gateway.asked)) == (429, "rate_limited", 90)
    assert int(reply.headers["Retry-After"]) > 60
    assert (await site.post("/v1/chat/completions", CHAT | {"n": 5}, headers=mine))[0].status == 200


async def test_a_batch_takes_the_places_that_are_free_and_no_others(keyed: Keyed) -> None:
    """Its neighbours of the same address hold three of five: no item is refused for that, and the fifth stays theirs when it ends."""
    site, gateway, mine = await begin(keyed)
    other = bearer((await site.register("bob"))["api_key"])
    for _ in range(3):
        await site.post(INFER, {"input": {"text": "stay"}, "parameters": {"async": True}}, headers=other)
    await until(lambda: gateway.running == 3, 5, "the neighbours' replies")
    items = [{"id": str(number), "text": f"question {number}"} for number in range(12)]
    _, body = await site.post(f"{INFER}/batch", {"inputs": items, "parameters": {"concurrency": 32}}, headers=mine)
    assert (body["data"]["succeeded"], gateway.most) == (12, 5)
    assert site.home.accounts.windows._uses["address:127.0.0.1"].running == 3
    assert (await site.post("/v1/chat/completions", CHAT, headers=other))[0].status == 200


async def test_a_batch_stops_where_the_months_tokens_end(keyed: Keyed) -> None:
    site, _gateway, mine = await begin(keyed)
    site.home.accounts.windows.spend("address:127.0.0.1", 99_975, time.time())
    items = [{"id": str(number), "text": f"question {number}"} for number in range(9)]
    _, body = await site.post(f"{INFER}/batch", {"inputs": items, "parameters": {"concurrency": 1}}, headers=mine)
    codes = [one["error"]["code"] if one["error"] else "" for one in body["data"]["results"]]
    assert codes == [""] * 3 + ["rate_limited"] * 6
