"""/api/v1: the documented shapes, strictly: a field more or less in a reply fails here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from yarl import URL

from node.http import model_replies, replies
from protocol.errors import Busy, StorageFull, Unavailable
from tests.node.http.conftest import Site, Start
from tests.node.test_explain import over_budget
from tests.support.documents import check_document
from tests.support.fake_gateway import MODEL, PEERS, FakeGateway, many_models, refusal

INFER = "/api/v1/models/ann%2Fdemo@1/inference"
ASK = {"input": {"text": "The capital of France is", "max_tokens": 3}}


def shaped(data: Any, kind: Any) -> Any:
    """`data` as `kind`; raises where a field lacks, and fails where one is too many."""
    made = msgspec.convert(data, kind)
    assert msgspec.to_builtins(made) == data
    return made


async def test_models_are_paged(start: Start) -> None:
    site = await start(FakeGateway(listed=many_models(45)))
    reply, raw = await site.call("GET", "/api/v1/models?page=2&limit=20&search=model")
    body = msgspec.json.decode(raw)
    assert body["status"] == "success"
    page = shaped(body["data"], model_replies.ModelPage)
    assert [model.name for model in page.models] == [f"ann/model-{i:04d}@1" for i in range(20, 40)]
    assert page.pagination == model_replies.Pagination(current_page=2, total_pages=3, total_models=45, has_next=True, has_previous=True)
    assert site.gateway.queries == ["model"]
    assert '</api/v1/models?page=3&limit=20&search=model>; rel="next"' in reply.headers["Link"]


async def test_a_page_past_the_end_is_empty(site: Site) -> None:
    _, body = await site.get("/api/v1/models?page=9")
    assert body["data"]["models"] == []
    assert body["data"]["pagination"] == {"current_page": 9, "total_pages": 1, "total_models": 1, "has_next": False, "has_previous": True}


@pytest.mark.parametrize("name", ["ann/demo@1", "ann%2Fdemo%401", "ann%2fdemo@1", MODEL.model_id])
async def test_one_model_by_name_or_id(site: Site, name: str) -> None:
    async with site.session.get(URL(f"{site.server.url}/api/v1/models/{name}", encoded=True)) as reply:
        body = await reply.json()
    model = shaped(body["data"], model_replies.ModelDetail)
    assert (model.id, model.storage["survives_losses"], model.created_at) == (MODEL.model_id, 4, "2023-11-14T22:13:20Z")
    assert model.performance_metrics == model_replies.Performance()


@pytest.mark.parametrize("path", ["/api/v1/models/nobody%2Fx", "/v1/models/nobody"])
async def test_an_unknown_model_is_404_with_near_names(site: Site, path: str) -> None:
    status, body = await site.get(path)
    assert status == 404
    shown = body["error"]["message"] if path.startswith("/v1") else body["error"]["details"]["suggestion"]
    assert "did you mean ann/demo@1?" in shown


async def test_plan_tells_and_force_lifts_the_budget(start: Start, tmp_path: Path) -> None:
    explainer, _router, _located = over_budget(tmp_path)

    class Planning(FakeGateway):
        async def plan(self, model: str, tokens: int | None, force: bool) -> dict[str, Any]:
            await self.model(model)
            return await explainer.explain(model, tokens, force=force)

    site = await start(Planning())
    plans = {}
    for query in ("tokens=64", "tokens=64&force=true"):
        status, body = await site.get(f"/api/v1/models/ann%2Fdemo@1/plan?{query}")
        assert status == 200
        plans[query] = body["data"]
        check_document("explain", body["data"])
    refused, forced = plans.values()
    assert (refused["kind"], refused["budget"]["refused"], forced["budget"]["refused"]) == ("pipeline", True, False)
    assert "--force" in refused["hint"]
    assert (forced["hint"], forced["budget"]["within"]) == (None, False)
    assert refused["stages"] == forced["stages"]
    for wrong, where in (("tokens=0", "tokens"), ("tokens=4194305", "tokens"), ("tokens=64&force=maybe", "force"), ("tokenz=64", "tokenz")):
        status, body = await site.get(f"/api/v1/models/ann%2Fdemo@1/plan?{wrong}")
        assert (status, where in str(body)) == (400, True), wrong
    assert (await site.get("/api/v1/models/nobody%2Fx/plan"))[0] == 404


STAGE_FIGURES = [
    replies.StageFigures(peer=PEERS[0], first=0, end=10, prefill_ms=10, decode_ms=200, wait_ms=3, measured_by=PEERS[0]),
    replies.StageFigures(peer=PEERS[1], first=10, end=20, prefill_ms=None, decode_ms=None, wait_ms=None, measured_by=None),
    replies.StageFigures(peer=PEERS[2], first=20, end=30, prefill_ms=20, decode_ms=250, wait_ms=0, measured_by=PEERS[2]),
]


async def test_inference_in_its_documented_shape(site: Site) -> None:
    reply, body = await site.post(INFER, ASK | {"parameters": {"timeout_seconds": 9}})
    assert reply.status == 200
    made = shaped(body["data"], replies.Inference)
    assert made.inference_id.startswith("inf_")
    assert made.result == replies.Result(text="Paris.", tokens_generated=3, finish_reason="stop")
    assert made.usage == replies.Usage(prompt_tokens=7, completion_tokens=3, total_tokens=10)
    assert made.metadata.execution_time_ms == 1501
    assert (made.metadata.model_load_time_ms, made.metadata.inference_time_ms, made.metadata.tokens_per_second) == (500, 1000, 3)
    assert [stage["peer"] for stage in made.metadata.compute_provider.route] == PEERS
    assert reply.headers["X-MF-Route"] == f"pipeline;{PEERS[0]}[0-10],{PEERS[1]}[10-20],{PEERS[2]}[20-30]"
    whole = "plan;dur=1, assemble;dur=200, load;dur=300, first_token;dur=600, total;dur=1501"
    stages = "s0p;dur=10, s0d;dur=200, s0w;dur=3, s2p;dur=20, s2d;dur=250, s2w;dur=0"
    assert reply.headers["Server-Timing"] == f"{whole}, {stages}"
    assert made.metadata.timings_ms["first_token"] == 600
    assert made.metadata.stages == STAGE_FIGURES
    [asked] = site.gateway.asked
    assert (asked.model, asked.text, asked.max_tokens, asked.timeout) == ("ann/demo@1", ASK["input"]["text"], 3, 9)


async def test_sampling_reaches_the_gateway(site: Site) -> None:
    given = {"temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": -1, "stop_sequences": ["\n"]}
    messages = [{"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]}]
    _, body = await site.post(INFER, {"input": {"messages": messages, **given}, "parameters": {"include_metadata": False}})
    assert "metadata" not in body["data"]
    [asked] = site.gateway.asked
    sampled = asked.sampling
    assert (sampled.temperature, sampled.top_p, sampled.top_k, sampled.seed) == (0.5, 0.9, 4, 2**63 - 1)
    assert (asked.stop, asked.messages) == (("\n",), [{"role": "system", "content": "be brief"}])


async def test_inference_streamed(site: Site) -> None:
    reply, events = await site.events(INFER, ASK | {"parameters": {"stream": True}})
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert reply.headers["X-MF-Route"].startswith("pipeline;")
    assert [name for name, _ in events] == ["start", "token", "token", "token", "finish"]
    start, *tokens, finish = [msgspec.json.decode(data) for _, data in events]
    assert shaped(start, replies.StreamStart).prompt_tokens == 7
    assert [shaped(token, replies.StreamToken).cumulative_text for token in tokens] == ["Par", "Paris", "Paris."]
    last = shaped(finish, replies.StreamFinish)
    assert last.inference_id == start["inference_id"]
    assert (last.mf.kind, last.mf.timings_ms["first_token"], last.result.text) == ("pipeline", 600, "Paris.")
    assert last.mf.stages == STAGE_FIGURES


@pytest.mark.parametrize(("kind", "status"), [(Unavailable, 503), (Busy, 429), (StorageFull, 507)])
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_plan_keep_their_status(start: Start, kind: Any, status: int, stream: bool) -> None:
    site = await start(FakeGateway(early=refusal(kind)))
    reply, body = await site.post(INFER, ASK | {"parameters": {"stream": stream}})
    assert reply.status == status
    error = shaped(body, replies.Failure).error
    assert (error.code, error.details) == (kind.code, {"group": "layer.3", "missing": 1, "suggestion": "ask later"})
    assert error.request_id == reply.headers["X-Request-Id"]
    assert ("Retry-After" in reply.headers) == (kind is Busy)


@pytest.mark.parametrize("late", [refusal(Unavailable), None])
async def test_an_error_in_a_stream_is_its_last_event(start: Start, late: Any) -> None:
    site = await start(FakeGateway(late=late, silent_end=True))
    reply, events = await site.events(INFER, ASK | {"parameters": {"stream": True}})
    assert reply.status == 200
    name, data = events[-1]
    assert name == "error"
    assert shaped(msgspec.json.decode(data), replies.Failure).error.code == "unavailable"
    assert "finish" not in [event for event, _ in events]


async def test_health_and_swarm(site: Site) -> None:
    assert await site.get("/health") == (200, {"status": "healthy", "reason": None, "last_probe": {"at": 1.0, "ok": True}})
    _, system = await site.get("/api/v1/system/health")
    assert {"api_gateway", "storage_network", "compute_network", "model_registry", "status", "reason", "last_probe"} == set(system["data"])
    assert (system["data"]["api_gateway"]["status"], system["data"]["api_gateway"]["requests_last_minute"]) == ("healthy", 1)
    _, swarm = await site.get("/api/v1/system/swarm")
    assert (swarm["data"]["peer_id"], swarm["data"]["peers_alive"]) == (PEERS[0], 2)
    assert swarm["data"]["peers"][2] == {"peer_id": PEERS[2], "version": "0.1.0", "alive": False}
    assert "10.0.0.9" not in str(swarm)


async def test_an_address_whose_requests_fail_says_so(start: Start) -> None:
    """The node's own faults count, not what a model's holders can't give just now."""
    site = await start(FakeGateway(early=refusal(Unavailable)))
    for _ in range(10):
        assert (await site.post(INFER, ASK))[0].status == 503
    assert (await site.get("/health"))[1]["status"] == "healthy"
    site.gateway.early = ZeroDivisionError("a fault nobody foresaw")
    for _ in range(30):
        assert (await site.post(INFER, ASK))[0].status == 500
    status, told = await site.get("/health")
    assert (status, told["status"], told["reason"]) == (200, "unhealthy", "30 of 41 requests of the last minute failed")
    own = (await site.get("/api/v1/system/health"))[1]["data"]
    assert (own["status"], own["api_gateway"]["status"], own["api_gateway"]["failed_last_minute"]) == ("unhealthy", "unhealthy", 30)
