"""`/api/v1/webhooks`: where a caller wants to be told that an upload or a batch has ended."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from node.http import upload_schemas as schemas
from node.http.access import access_of
from node.http.api_v1 import success
from node.http.bodies import read_json, read_query
from node.http.context import SETTINGS
from node.http.metering import caller
from node.http.model_replies import moment
from node.http.publishing import publishing_of
from node.http.schemas import NoQuery
from node.webhooks.book import EVENTS, Webhook
from node.webhooks.target import check_url


def _shown(webhook: Webhook) -> dict[str, Any]:
    return {"id": webhook.id, "url": webhook.url, "events": list(webhook.events), "created_at": moment(webhook.created)}


async def add(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, schemas.WebhookRequest, request.app[SETTINGS])
    webhooks = publishing_of(request).webhooks
    host = check_url(body.url, webhooks.allowed)
    made = await webhooks.book.add(caller().who, body.url, list(dict.fromkeys(body.events or EVENTS)))
    await access_of(request).journal.add("webhook_made", user=caller().name, webhook=made.id, host=host)
    reply = success(schemas.MadeWebhook(**_shown(made), secret=made.secret))
    reply.set_status(201)
    return reply


async def mine(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    found = await publishing_of(request).webhooks.book.of(caller().who)
    return success(schemas.WebhookList(webhooks=[schemas.WebhookShown(**_shown(one)) for one in found]))


async def drop(request: web.Request) -> web.StreamResponse:
    webhook = request.match_info["webhook"]
    await publishing_of(request).webhooks.book.drop(caller().who, webhook)
    await access_of(request).journal.add("webhook_dropped", user=caller().name, webhook=webhook)
    return success({"id": webhook, "status": "removed"})


ROUTES = [
    web.post("/api/v1/webhooks", add),
    web.get("/api/v1/webhooks", mine),
    web.delete("/api/v1/webhooks/{webhook}", drop),
]
