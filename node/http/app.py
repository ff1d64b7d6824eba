"""The one HTTP application of a node: its middlewares, its routes, and the server around it."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from node.gateway import Gateway
from node.http import (
    api_v1,
    api_v1_auth,
    api_v1_callers,
    api_v1_jobs,
    api_v1_models,
    api_v1_owned,
    api_v1_share,
    api_v1_upload,
    api_v1_users,
    api_v1_webhooks,
    ollama,
    openai,
    openapi,
    page,
)
from node.http.access import ACCESS, Access, access_layer, rate_headers
from node.http.context import ERROR_CODE, GATEWAY, METRICS, REQUEST_ID, SETTINGS, STARTED
from node.http.doorman import DOORMAN, KEPT_OPEN, Doorman, GuardedRunner
from node.http.errors import ClientLeft, Handler, error_layer
from node.http.guard import allowed_origin, cors_headers, guard
from node.http.idempotency import REPLIES, Idempotent
from node.http.inference import CACHE
from node.http.jobs import JOBS, Jobs
from node.http.kept import Kept
from node.http.metering import MeteredGateway
from node.http.metrics import CONTENT_TYPE, Metrics
from node.http.model_figures import FIGURES, Figures
from node.http.publishing import PUBLISHING, Publishing
from node.http.query_layer import query_layer
from node.http.settings import HttpSettings
from node.http.xml import xml_layer
from node.private.gateway import PrivateGateway
from protocol.errors import Conflict

log = logging.getLogger(__name__)

_API_ROUTES = [
    *api_v1_auth.ROUTES,
    *api_v1_users.ROUTES,
    *api_v1_callers.ROUTES,
    *api_v1_upload.ROUTES,
    *api_v1_webhooks.ROUTES,
    *api_v1_share.ROUTES,
    *api_v1_models.ROUTES,
    *api_v1_jobs.ROUTES,
    *api_v1.ROUTES,
    *api_v1_models.LAST_ROUTES,
    *api_v1_owned.LAST_ROUTES,
]
_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LEFT = 499
_ALWAYS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class _WithoutContent(logging.Filter):
    """aiohttp quotes the bytes it couldn't parse, which may be the tail of a prompt: keep that it failed, drop what it quotes."""

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        record.exc_info, record.exc_text = None, None
        record.__dict__["event"] = "http_connection"
        record.__dict__["fields"] = {"kind": kind.__name__ if kind else None}
        return True


_wire_log = logging.getLogger("node.http.wire")
_wire_filter = _WithoutContent()


def _request_id(request: web.Request) -> str:
    """The caller's own id where it is short and plain, so that both logs meet; else a new one."""
    given = request.headers.get("X-Request-Id", "")
    return given if _CLIENT_ID.fullmatch(given) else f"req_{secrets.token_hex(8)}"


def _template(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", resource.canonical) if resource is not None else "unmatched"


def _record(request: web.Request, status: int, seconds: float) -> None:
    """One line a request. The query stays out of it: a search is the asker's own business."""
    request.app[METRICS].request(request.method, _template(request), status, seconds)
    fields = {
        "method": request.method[:16],
        "path": request.rel_url.raw_path[:512],
        "status": status,
        "ms": round(seconds * 1000, 1),
        "request_id": request[REQUEST_ID],
    }
    if ERROR_CODE in request:
        fields["error"] = request[ERROR_CODE]
    level = logging.DEBUG if request.method == "GET" and status < 400 else logging.INFO  # pages and monitors look every few seconds
    log.log(level, "answered an HTTP request", extra={"event": "http_request", "fields": fields})


@web.middleware
async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives the request its id, and counts and logs how it ended, also when the client left."""
    request.app[DOORMAN].heard(request.protocol)
    request[REQUEST_ID] = _request_id(request)
    started, status = time.monotonic(), _LEFT
    with request.app[METRICS].in_flight.track_inprogress():
        try:
            response = await handler(request)
            status = response.status
            return response
        except ClientLeft:
            return web.Response(status=_LEFT)
        finally:
            _record(request, status, time.monotonic() - started)
            request.app[DOORMAN].answered(request.protocol)


def _finish_headers(settings: HttpSettings) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def add(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(_ALWAYS)
        if REQUEST_ID in request:
            response.headers["X-Request-Id"] = request[REQUEST_ID]
        response.headers.update(rate_headers(request))
        origin = allowed_origin(request, settings)
        response.headers.update(cors_headers(origin) if origin else {"Cross-Origin-Resource-Policy": "same-origin"})
        response.headers.pop(hdrs.SERVER, None)

    return add


async def _metrics_page(request: web.Request) -> web.StreamResponse:
    return web.Response(body=request.app[METRICS].page(), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})


async def _end_jobs(app: web.Application) -> None:
    await app[JOBS].close()


def make_app(
    gateway: Gateway,
    settings: HttpSettings,
    metrics: Metrics | None = None,
    access: Access | None = None,
    publishing: Publishing | None = None,
) -> web.Application:
    """The application over `gateway`; `metrics` is given where the daemon adds gauges of its own, `access` where there are accounts,
    `publishing` where models are taken in."""
    middlewares = [observe, xml_layer, error_layer, guard(settings), access_layer(access, settings), query_layer]
    app = web.Application(middlewares=middlewares, client_max_size=settings.max_body)
    app[FIGURES] = Figures(access.accounts.home if access else None)
    inner = gateway if publishing is None else PrivateGateway(gateway, publishing.private)
    app[GATEWAY] = MeteredGateway(inner, app[FIGURES])
    app[CACHE], app[REPLIES], app[JOBS] = Kept(), Idempotent(), Jobs()
    app[DOORMAN] = Doorman()
    app.on_shutdown.append(_end_jobs)
    if access is not None:
        app[ACCESS] = access
    if publishing is not None:
        app[PUBLISHING] = publishing
    app[SETTINGS] = settings
    app[METRICS] = metrics or Metrics()
    app[STARTED] = time.monotonic()
    app.add_routes([*_API_ROUTES, *openai.ROUTES, *openapi.ROUTES, *page.ROUTES, web.get("/metrics", _metrics_page)])
    if settings.ollama:
        app.add_routes(ollama.ROUTES)
    app.on_response_prepare.append(_finish_headers(settings))
    return app


class HttpServer:
    """The application on its socket. `port` and `url` are known after `start`, also where port 0 was asked."""

    def __init__(
        self, gateway: Gateway, settings: HttpSettings, access: Access | None = None, publishing: Publishing | None = None
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.port = 0
        self.scheme = "http"
        self._gateway = gateway
        self._access = access
        self._publishing = publishing
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        every = ("0.0.0.0", "::", "")
        shown = "127.0.0.1" if self.settings.host in every else self.settings.host
        return f"{self.scheme}://[{shown}]:{self.port}" if ":" in shown else f"{self.scheme}://{shown}:{self.port}"

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        """Listens, with TLS where a context is given. `Conflict` when the port is taken or the address isn't this machine's."""
        self.scheme = "https" if tls else "http"
        app = make_app(self._gateway, self.settings, self.metrics, self._access, self._publishing)
        _wire_log.addFilter(_wire_filter)
        patience = self.settings.shutdown_timeout
        options = {"handler_cancellation": True, "shutdown_timeout": patience, "access_log": None, "logger": _wire_log}
        runner = GuardedRunner(app, app[DOORMAN], keepalive_timeout=KEPT_OPEN, **options)
        await runner.setup()
        try:
            await web.TCPSite(runner, self.settings.host, self.settings.port, ssl_context=tls).start()
        except OSError as error:
            await runner.cleanup()
            raise self._refused(error) from error
        self._runner = runner
        self.port = runner.addresses[0][1]
        log.info("the HTTP address answers", extra={"event": "http_listening", "fields": {"url": self.url}})

    def _refused(self, error: OSError) -> Conflict:
        where = f"{self.settings.host}:{self.settings.port}"
        why = "it is in use" if error.errno == errno.EADDRINUSE else (error.strerror or "it was refused")
        return Conflict(f"can't listen for HTTP on {where}: {why}", hint="choose another with --http HOST:PORT, or port 0 for a free one")

    async def stop(self) -> None:
        """Stops listening and ends what is being answered; again and before `start` it does nothing."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await asyncio.shield(runner.cleanup())
