"""Ollama's paths: only where they are wanted, in its shapes, plain and in lines."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from node.http import ollama_replies as replies
from protocol.errors import Unavailable
from protocol.messages import Grammar
from tests.node.http.conftest import Site, Start
from tests.node.http.test_api_v1 import shaped
from tests.node.http.test_openai_chat import CALL, TOOL
from tests.support.fake_gateway import MODEL, FakeGateway, refusal

CHAT: dict[str, Any] = {"model": "ann/demo@1:latest", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
async def site(start: Start) -> Site:
    return await start(ollama=True)


async def lines(site: Site, path: str, body: Any) -> list[Any]:
    reply, raw = await site.call("POST", path, json=body)
    assert reply.headers["Content-Type"] == "application/x-ndjson"
    return [msgspec.json.decode(line) for line in raw.splitlines()]


async def test_without_the_flag_they_are_not_there(start: Start) -> None:
    site = await start()
    for path in ("/api/version", "/api/tags", "/api/ps"):
        assert (await site.get(path))[0] == 404
    assert (await site.call("POST", "/api/chat", json=CHAT))[0].status == 404
    _, document = await site.get("/openapi.json")
    assert "/api/chat" not in document["paths"]


async def test_lists(site: Site) -> None:
    assert shaped((await site.get("/api/version"))[1], replies.Version).version
    [listed] = shaped((await site.get("/api/tags"))[1], replies.Tags).models
    assert (listed.name, listed.digest, listed.size, listed.details.parameter_size) == (
        MODEL.name,
        MODEL.model_id,
        MODEL.size_bytes,
        "135.00M",
    )
    assert shaped((await site.get("/api/ps"))[1], replies.Running).models == []
    _, body = await site.post("/api/show", {"model": "ann/demo@1:latest"})
    assert shaped(body, replies.Shown).model_info["general.context_length"] == MODEL.context
    _, document = await site.get("/openapi.json")
    assert "application/x-ndjson" in document["paths"]["/api/chat"]["post"]["responses"]["200"]["content"]


async def test_a_chat_plain_and_in_lines(site: Site) -> None:
    options = {"num_predict": 9, "temperature": 0.5, "repeat_penalty": 1.1, "stop": ["x"], "seed": 3}
    _, body = await site.post("/api/chat", CHAT | {"stream": False, "options": options, "format": "json", "keep_alive": "5m"})
    made = shaped(body, replies.Done)
    assert made.message is not None
    assert (made.message.content, made.done, made.done_reason, made.eval_count) == ("Paris.", True, "stop", 3)
    [asked] = site.gateway.asked
    assert (asked.model, asked.max_tokens, asked.stop) == ("ann/demo@1", 9, ("x",))
    assert (asked.sampling.repetition_penalty, asked.sampling.grammar) == (1.1, Grammar(kind="json"))
    told = await lines(site, "/api/chat", CHAT)
    assert "".join(line["message"]["content"] for line in told) == "Paris."
    assert [line["done"] for line in told] == [False, False, False, True]
    assert told[-1]["total_duration"] == 1_501_000_000


async def test_calls_come_whole(start: Start) -> None:
    site = await start(FakeGateway(words=CALL), ollama=True)
    told = await lines(site, "/api/chat", CHAT | {"tools": [TOOL]})
    assert [line["message"]["tool_calls"] for line in told if "tool_calls" in line["message"]] == [
        [{"function": {"name": "weather", "arguments": {"city": "Paris"}}}]
    ]
    call = {"role": "assistant", "content": "", "tool_calls": told[0]["message"]["tool_calls"]}
    again = [*CHAT["messages"], call, {"role": "tool", "content": "Rain", "tool_name": "weather"}]
    reply, _ = await site.post("/api/chat", CHAT | {"messages": again, "stream": False})
    assert reply.status == 200


async def test_a_prompt(site: Site) -> None:
    told = await lines(site, "/api/generate", {"model": "ann/demo@1", "prompt": "Hi", "system": "Be short."})
    assert "".join(line["response"] for line in told) == "Paris."
    assert [message["role"] for message in site.gateway.asked[0].messages or []] == ["system", "user"]
    await lines(site, "/api/generate", {"model": "ann/demo@1", "prompt": "Hi", "raw": True})
    assert (site.gateway.asked[1].text, site.gateway.asked[1].messages) == ("Hi", None)


async def test_errors_are_one_text(start: Start) -> None:
    site = await start(FakeGateway(late=refusal(Unavailable)), ollama=True)
    assert "error" in (await lines(site, "/api/chat", CHAT))[-1]
    reply, body = await site.post("/api/chat", CHAT | {"options": {"num_ctx": 1}, "stream": False})
    assert (reply.status, list(body)) == (400, ["error"])
    assert "num_ctx" in body["error"]
    assert (await site.post("/api/chat", CHAT | {"model": "nobody"}))[0].status == 404
