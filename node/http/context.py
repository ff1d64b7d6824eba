"""What handlers find on the application and on the request, under typed keys."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from node.gateway import Gateway
from node.http.metrics import Metrics
from node.http.settings import HttpSettings
from node.http.stream import EventStream

GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)
SETTINGS: web.AppKey[HttpSettings] = web.AppKey("settings", HttpSettings)
METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)
STARTED: web.AppKey[float] = web.AppKey("started", float)

REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
ERROR_CODE: web.RequestKey[str] = web.RequestKey("error_code", str)
STREAM: web.RequestKey[EventStream] = web.RequestKey("stream", EventStream)
"""Set once a stream has begun: from then on an error is written into it."""


def json_reply(body: Any, headers: dict[str, str] | None = None, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body, enc_hook=str), headers=headers, content_type="application/json")
