"""Async, batch, compare, the cache, idempotency, the examples."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec
import pytest

from node.http import job_schemas as schemas
from node.http.kept import Kept
from node.http.replies import Inference
from tests.node.http.conftest import Site, Start
from tests.node.http.test_access import Keyed, bearer, keyed
from tests.support.fake_gateway import CLASSIFIER, MODEL, FakeGateway
from tests.support.wait import until

__all__ = ["keyed"]
INFER = "/api/v1/models/ann%2Fdemo@1/inference"
ASK = {"input": {"text": "The capital of France is", "max_tokens": 3}}
LATER = {**ASK, "parameters": {"async": True}}


async def test_an_async_reply_is_fetched_later(site: Site) -> None:
    reply, body = await site.post(INFER, LATER)
    accepted = msgspec.convert(body["data"], schemas.Accepted)
    assert (reply.status, reply.headers["Location"]) == (202, accepted.status_url)
    state: dict[str, Any] = {}

    async def finished() -> bool:
        state.update((await site.get(accepted.status_url))[1]["data"])
        return state["status"] == "finished"

    await until(finished, 10, "the async reply")
    assert msgspec.convert(state, schemas.JobState).result.result.text == "Paris."
    assert (await site.call("DELETE", accepted.status_url))[0].status == 200
    assert (await site.get(accepted.status_url))[0] == 404


async def test_an_async_reply_is_cancelled_where_it_runs(start: Start) -> None:
    site = await start(FakeGateway(hold="words"))
    _, body = await site.post(INFER, LATER)
    await site.gateway.waiting.wait()
    _, raw = await site.call("DELETE", body["data"]["status_url"])
    assert msgspec.json.decode(raw)["data"]["status"] == "cancelled"
    assert site.gateway.closed.is_set()


async def test_only_the_owner_sees_an_async_reply_and_it_keeps_a_place(keyed: Keyed) -> None:
    site = await keyed()
    site.gateway.hold = "words"
    mine, other = bearer((await site.register())["api_key"]), bearer((await site.register("bob"))["api_key"])
    _, body = await site.post(INFER, LATER, headers=mine)
    where = body["data"]["status_url"]
    assert (await site.get(where, headers=mine))[0] == 200
    assert (await site.get(where, headers=other))[0] == 404
    assert (await site.call("DELETE", where, headers=other))[0].status == 404
    for _ in range(4):
        await site.post(INFER, LATER, headers=mine)
    assert (await site.post(INFER, LATER, headers=mine))[0].status == 429
    await site.call("DELETE", where, headers=mine)
    assert (await site.post(INFER, LATER, headers=mine))[0].status == 202


async def test_a_greedy_reply_comes_from_the_cache_the_second_time_and_for_its_own_account(keyed: Keyed) -> None:
    site = await keyed()
    mine, other = bearer((await site.register())["api_key"]), bearer((await site.register("bob"))["api_key"])
    hits = []
    for headers in (mine, mine, other):
        _, body = await site.post(INFER, ASK, headers=headers)
        hits.append(body["data"]["metadata"]["cache_hit"])
        assert body["data"]["result"]["text"] == "Paris."
    assert hits == [False, True, False]
    for changed in ({"max_tokens": 4}, {"text": "The capital of Spain is"}, {"temperature": 1.0}, {"temperature": 1.0}):
        _, body = await site.post(INFER, {"input": {**ASK["input"], **changed}}, headers=mine)
        assert body["data"]["metadata"]["cache_hit"] is False


def test_what_is_kept_is_sealed_bounded_and_ends() -> None:
    now = 0.0
    kept = Kept(10.0, 1_000, lambda: now)
    kept.put("ann", b"a", b"secret words")
    assert kept.get("ann", b"a") == b"secret words"
    assert kept.get("bob", b"a") is None
    assert not any(b"secret" in entry.data for entry in kept._entries.values())
    for number in range(100):
        kept.put("ann", b"%d" % number, bytes(100))
    assert kept._bytes <= 1_000
    assert kept.get("ann", b"a") is None
    kept.put("ann", b"large", bytes(500))
    assert kept.get("ann", b"large") is None
    now = 11.0
    assert kept.get("ann", b"99") is None


async def test_the_same_key_is_answered_again_and_not_run_again(site: Site) -> None:
    headers = {"Idempotency-Key": "k1"}
    sampled = {"input": {**ASK["input"], "temperature": 1.0}}
    first = (await site.post(INFER, sampled, headers=headers))[1]
    reply, again = await site.post(INFER, sampled, headers=headers)
    assert (again, reply.headers["Idempotency-Replayed"], len(site.gateway.asked)) == (first, "true", 1)
    reply, _ = await site.post(INFER, ASK, headers=headers)
    assert reply.status == 409
    assert (await site.post(INFER, ASK, headers={"Idempotency-Key": "k" * 129}))[0].status == 400
    assert (await site.post(INFER, {**ASK, "parameters": {"stream": True}}, headers=headers))[0].status == 400


async def test_a_key_whose_request_runs_is_a_conflict(start: Start) -> None:
    site = await start(FakeGateway(hold="plan"))
    headers = {"Idempotency-Key": "k1"}
    first = asyncio.create_task(site.post(INFER, ASK, headers=headers))
    await site.gateway.waiting.wait()
    assert (await site.post(INFER, ASK, headers=headers))[0].status == 409
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_a_batch_answers_each_in_order(site: Site) -> None:
    items = [{"id": f"q{number}", "text": f"question {number}", "max_tokens": 3} for number in range(20)]
    _, body = await site.post(INFER + "/batch", {"inputs": items})
    batch = msgspec.convert(body["data"], schemas.BatchReply)
    assert [one.id for one in batch.results] == [item["id"] for item in items]
    assert (batch.succeeded, batch.failed) == (20, 0)
    assert 0 < batch.parallel_efficiency <= 1
    assert (await site.post(INFER + "/batch", {"inputs": [items[0], items[0]]}))[0].status == 400
    assert (await site.post(INFER + "/batch", {"inputs": items * 13}))[0].status == 400


async def test_each_item_of_a_batch_is_a_request_of_the_allowance(keyed: Keyed) -> None:
    site = await keyed()
    mine = bearer((await site.register())["api_key"])
    items = [{"id": f"q{number}", "text": f"question {number}", "max_tokens": 3} for number in range(120)]
    _, body = await site.post(INFER + "/batch", {"inputs": items}, headers=mine)
    assert 100 <= body["data"]["succeeded"] <= 101
    assert {one["error"]["code"] for one in body["data"]["results"] if one["status"] == "error"} == {"rate_limited"}


async def test_models_side_by_side(site: Site) -> None:
    _, body = await site.post("/api/v1/inference/compare", {"models": ["ann/demo@1", "nobody/x"], "input": ASK["input"]})
    first, second = msgspec.convert(body["data"], schemas.Comparison).results
    assert (first.text, first.tokens_generated, first.model_id, first.network_bytes) == ("Paris.", 3, MODEL.model_id, 0)
    assert first.cpu_seconds >= 0
    assert first.peak_memory_bytes > 1 << 20
    assert (second.status, second.error["code"]) == ("error", "not_found")


async def test_compared_models_tell_their_own_bytes_and_who_measured(keyed: Keyed) -> None:
    site = await keyed(gateway=FakeGateway(moves=(100, 23)))
    mine = bearer((await site.register())["api_key"])
    for _ in range(2):  # what the cache has is made anew all the same
        _, body = await site.post(
            "/api/v1/inference/compare", {"models": ["ann/demo@1", "ann/demo@1"], "input": ASK["input"]}, headers=mine
        )
        for one in msgspec.convert(body["data"], schemas.Comparison).results:
            assert (one.network_bytes, one.network_bytes_sent, one.network_bytes_received) == (123, 100, 23)
            assert (one.measured_by, one.compute_provider.kind) == (site.home.accounts.home, "pipeline")
    assert len(site.gateway.asked) == 4


async def test_a_models_figures_are_there_after_a_reply_and_null_before(start: Start) -> None:
    site = await start(FakeGateway(memory=812_345_678))
    model = "/api/v1/models/ann%2Fdemo@1"
    before = (await site.get(model))[1]["data"]["performance_metrics"]
    assert {before[name] for name in ("avg_inference_time_ms", "tokens_per_second", "memory_usage_gb", "memory_measured_at")} == {None}
    await site.post(INFER, ASK)
    found = (await site.get(model))[1]["data"]["performance_metrics"]
    assert (found["avg_inference_time_ms"], found["tokens_per_second"], found["memory_usage_gb"]) == (1000.0, 3.0, 0.8123)
    assert found["memory_measured_at"] == found["measured_at"]
    site.gateway.memory = None  # the next reply wasn't alone: what was measured stays, with its time
    await site.post(INFER, {"input": {**ASK["input"], "max_tokens": 2}})
    later = (await site.get(model))[1]["data"]["performance_metrics"]
    assert (later["samples"], later["memory_usage_gb"], later["memory_measured_at"]) == (2, 0.8123, found["memory_measured_at"])


LABELS = [{"label": "glad", "score": 0.625}, {"label": "cross", "score": 0.25}, {"label": "calm", "score": 0.125}]
MOODS = "/api/v1/models/ann%2Fmoods@1/inference"


@pytest.fixture
async def moods(start: Start) -> Site:
    return await start(FakeGateway(listed=[MODEL, CLASSIFIER]))


async def test_a_classifier_gives_labels(moods: Site) -> None:
    reply, body = await moods.post(MOODS, {"input": {"text": "What a day."}})
    assert reply.status == 200
    made = msgspec.convert(body["data"], Inference)
    assert body["data"]["result"] == {"labels": LABELS}
    assert (made.model_id, made.usage.prompt_tokens, made.usage.completion_tokens) == (CLASSIFIER.model_id, 5, 0)
    assert (made.metadata.compute_provider.kind, made.metadata.tokens_per_second, made.metadata.model_load_time_ms) == ("here", None, 200)
    assert reply.headers["X-MF-Route"] == "here;12D3KooWAlpha[0-10]"
    assert "total;dur=251" in reply.headers["Server-Timing"]
    assert [(one.model, one.inputs) for one in moods.gateway.classified] == [("ann/moods@1", ["What a day."])]
    assert moods.gateway.asked == []


async def test_a_classifier_in_a_batch_async_and_beside_another(moods: Site) -> None:
    _, body = await moods.post(MOODS + "/batch", {"inputs": [{"id": "a", "text": "x"}, {"id": "b", "text": "y", "max_tokens": 3}]})
    good, bad = body["data"]["results"]
    assert good["result"]["result"] == {"labels": LABELS}
    assert (bad["status"], bad["error"]["details"]["param"]) == ("error", "input.max_tokens")
    _, begun = await moods.post(MOODS, {"input": {"text": "x"}, "parameters": {"async": True}})
    state: dict[str, Any] = {}

    async def finished() -> bool:
        state.update((await moods.get(begun["data"]["status_url"]))[1]["data"])
        return state["status"] == "finished"

    await until(finished, 10, "the async labels")
    assert state["result"]["result"] == {"labels": LABELS}
    _, body = await moods.post("/api/v1/inference/compare", {"models": ["ann/demo@1", "ann/moods@1"], "input": {"text": "x"}})
    writer, classifier = msgspec.convert(body["data"], schemas.Comparison).results
    assert (writer.text, writer.labels) == ("Paris.", None)
    assert (classifier.text, msgspec.to_builtins(classifier.labels)) == (None, LABELS)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"messages": [{"role": "user", "content": "x"}]}, "input.messages"),
        ({"text": "x", "max_tokens": 1}, "input.max_tokens"),
        ({"text": "x", "temperature": 0.5}, "input.temperature"),
        ({"text": "x", "top_p": 0.5}, "input.top_p"),
        ({"text": "x", "top_k": 3}, "input.top_k"),
        ({"text": "x", "seed": 1}, "input.seed"),
        ({"text": "x", "stop_sequences": ["y"]}, "input.stop_sequences"),
    ],
)
async def test_what_only_a_writer_takes_is_named(moods: Site, given: dict[str, Any], param: str) -> None:
    reply, body = await moods.post(MOODS, {"input": given})
    assert (reply.status, body["error"]["details"]["param"]) == (400, param)
    assert moods.gateway.classified == []


@pytest.mark.parametrize(("language", "command"), [("curl", ["bash", "-c"]), ("python", ["python3", "-c"]), ("javascript", ["node", "-e"])])
@pytest.mark.parametrize(("model", "said"), [("ann%2Fdemo@1", b"Paris."), ("ann%2Fmoods@1", b"glad")])
async def test_examples_run_as_they_stand(keyed: Keyed, language: str, command: list[str], model: str, said: bytes) -> None:
    site = await keyed(gateway=FakeGateway(listed=[MODEL, CLASSIFIER]))
    key = (await site.register())["api_key"]
    _, body = await site.get(f"/api/v1/models/{model}", headers=bearer(key))
    example = body["data"]["example_usage"][language]
    ran = await asyncio.create_subprocess_exec(
        *command, example, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, "MF_API_KEY": key}
    )
    out, _ = await asyncio.wait_for(ran.communicate(), 60)
    assert said in out, out
