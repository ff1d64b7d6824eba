"""`/v1`: OpenAI's API, as far as this node honours it. What it doesn't is refused by name, never passed over."""

from __future__ import annotations

import base64
import struct

from aiohttp import web

from node.gateway import EmbeddingRequest
from node.http import openai_replies as replies
from node.http.api_v1 import in_time
from node.http.bodies import model_name, read_json
from node.http.context import GATEWAY, SETTINGS, json_reply
from node.http.openai_chat import chat
from node.http.openai_completions import completions, one_or_many
from node.http.openai_replies import Embedding, EmbeddingList, EmbeddingsUsage
from node.http.openai_responses import responses
from node.http.openai_schemas import UNSUPPORTED_EMBEDDINGS, EmbeddingsRequest

MAX_INPUTS = 2_048
"""OpenAI's own bound."""


async def embeddings(request: web.Request) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    body = await read_json(request, EmbeddingsRequest, settings, unsupported=UNSUPPORTED_EMBEDDINGS)
    wanted = EmbeddingRequest(body.model, one_or_many(body.input, "input", MAX_INPUTS), settings.generation_timeout)
    made = await request.app[GATEWAY].embed(wanted)
    data = [Embedding(index=number, embedding=_vector(row, body.encoding_format)) for number, row in enumerate(made.rows)]
    usage = EmbeddingsUsage(prompt_tokens=made.tokens, total_tokens=made.tokens)
    return json_reply(EmbeddingList(model=body.model, data=data, usage=usage))


def _vector(row: bytes, encoding: str) -> list[float] | str:
    return base64.b64encode(row).decode() if encoding == "base64" else [number for (number,) in struct.iter_unpack("<f", row)]


async def list_models(request: web.Request) -> web.StreamResponse:
    found = await in_time(request, request.app[GATEWAY].models(), "the list of models")
    return json_reply(replies.OpenAIModels(data=[replies.openai_model(info) for info in found]))


async def one_model(request: web.Request) -> web.StreamResponse:
    info = await in_time(request, request.app[GATEWAY].model(model_name(request)), "the model")
    return json_reply(replies.openai_model(info))


ROUTES = [
    web.get("/v1/models", list_models),
    web.get("/v1/models/{id:.+}", one_model),
    web.post("/v1/chat/completions", chat),
    web.post("/v1/completions", completions),
    web.post("/v1/responses", responses),
    web.post("/v1/embeddings", embeddings),
]
