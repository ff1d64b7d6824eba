"""What handlers find on the application, under typed keys."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from node.gateway import Gateway
from node.http.metrics import Metrics
from node.http.settings import HttpSettings

GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)
SETTINGS: web.AppKey[HttpSettings] = web.AppKey("settings", HttpSettings)
METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)
STARTED: web.AppKey[float] = web.AppKey("started", float)


def json_reply(body: Any, headers: dict[str, str] | None = None, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body, enc_hook=str), headers=headers, content_type="application/json")
