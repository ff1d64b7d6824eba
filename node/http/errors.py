"""The one error layer: every failure leaves as JSON in the shape of the API that was asked.

`/v1` speaks OpenAI's error body, everything else `/api/v1`'s. An error that comes after a stream began is
written into the stream, since its status line is gone. Nothing of a request's content reaches the log: an
unforeseen exception is logged by its type and frames, because its text may quote a prompt.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from node.http.context import ERROR_CODE, REQUEST_ID, STREAM
from node.http.stream import EventStream
from protocol.errors import BadInput, Busy, Forbidden, MfError, NotFound, TooLarge

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger(__name__)

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class NoSuchPath(NotFound):
    """The URL's path is none of this node's."""

    code = "no_such_path"


class ClientLeft(ConnectionError):
    """Nobody is there to be answered."""


class MethodNotAllowed(MfError):
    code, status, exit_code = "method_not_allowed", 405, 2


def timestamp() -> str:
    """Now, as RFC 3339 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def client_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def is_openai(request: web.BaseRequest) -> bool:
    return request.path.startswith("/v1/")


def suggestion(error: MfError) -> str | None:
    """What to do about it: the error's own hint, else the near names it carries."""
    candidates = error.details.get("candidates")
    if error.hint or not isinstance(candidates, list) or not candidates:
        return error.hint
    return f"did you mean {', '.join(str(name) for name in candidates[:5])}?"


def api_shape(error: MfError, request_id: str) -> dict[str, Any]:
    details = dict(error.details)
    advice = suggestion(error)
    if advice:
        details["suggestion"] = advice
    body = {"code": error.code, "message": error.message, "details": details, "timestamp": timestamp(), "request_id": request_id}
    return {"status": "error", "error": body}


def openai_shape(error: MfError) -> dict[str, Any]:
    advice = suggestion(error)
    missing_model = isinstance(error, NotFound) and not isinstance(error, NoSuchPath)
    kind = "server_error" if error.status >= 500 else _OPENAI_TYPES.get(error.status, "invalid_request_error")
    return {
        "error": {
            "message": f"{error.message} ({advice})" if advice else error.message,
            "type": kind,
            "param": error.details.get("param", "model" if missing_model else None),
            "code": "model_not_found" if missing_model else error.code,
        }
    }


def is_ollama(request: web.BaseRequest) -> bool:
    return request.path.startswith("/api/") and not request.path.startswith("/api/v1/")


def error_body(request: web.BaseRequest, error: MfError) -> bytes:
    shape = (
        openai_shape(error)
        if is_openai(request)
        else {"error": str(error)}
        if is_ollama(request)
        else api_shape(error, request[REQUEST_ID])
    )
    return msgspec.json.encode(shape, enc_hook=str)


def error_response(request: web.BaseRequest, error: MfError) -> web.Response:
    response = web.Response(status=error.status, body=error_body(request, error), content_type="application/json")
    if isinstance(error, Busy) or "retry_after" in error.details:
        response.headers["Retry-After"] = str(int(error.details.get("retry_after", 1)))
    if error.status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="modelfloat"'
    return response


def from_http_exception(request: web.BaseRequest, raised: web.HTTPException) -> MfError:
    """aiohttp's own refusals (routing, sizes) under our tree."""
    if isinstance(raised, web.HTTPMethodNotAllowed):
        allowed = sorted(raised.allowed_methods)
        return MethodNotAllowed(
            f"{request.method[:16]} isn't answered here", hint=f"use {', '.join(allowed)}", details={"allowed": allowed}
        )
    if isinstance(raised, web.HTTPRequestEntityTooLarge):
        return TooLarge("the body is larger than this node takes")
    if raised.status == 404:
        return NoSuchPath("this node has nothing at that path", hint="GET /docs lists what it answers")
    if raised.status == 403:
        return Forbidden(raised.reason)
    if 400 <= raised.status < 500:
        return BadInput(raised.reason)
    return MfError(raised.reason)


def unforeseen(request: web.BaseRequest, raised: Exception) -> MfError:
    """Logs where it happened, without the exception's text, and hides it from the caller."""
    frames = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(raised.__traceback__)]
    fields = {"request_id": request[REQUEST_ID], "kind": type(raised).__name__, "frames": frames[-12:]}
    log.error("a request failed for a reason nobody foresaw", extra={"event": "http_internal_error", "fields": fields})
    return MfError("the node failed at this request", hint=f"its log has more under request id {request[REQUEST_ID]}")


async def _fail(request: web.Request, error: MfError) -> web.StreamResponse:
    request[ERROR_CODE] = error.code
    stream: EventStream | None = request.get(STREAM)
    if stream is None:
        return error_response(request, error)
    return await stream.fail(error_body(request, error))


@web.middleware
async def error_layer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except MfError as error:
        return await _fail(request, error)
    except web.HTTPException as raised:
        return await _fail(request, from_http_exception(request, raised))
    except Exception as raised:  # boundary: one request must not take the node down
        if isinstance(raised, ConnectionError) and client_left(request):
            raise ClientLeft from None
        return await _fail(request, unforeseen(request, raised))
