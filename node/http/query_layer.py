"""Query fields that the document has no word of are refused by name, also where a handler looks at none: what is passed over in silence
is taken for granted by who sent it."""

from __future__ import annotations

from aiohttp import web

from node.http.access import route_of
from node.http.bodies import check_names
from node.http.errors import Handler
from node.http.openapi import operations_by_route

_APIS = ("/v1/", "/api/")


@web.middleware
async def query_layer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Around every handler of the APIs; pages and what monitors read aren't looked at."""
    if request.query_string and request.path.startswith(_APIS):
        method = "GET" if request.method == "HEAD" else request.method
        operation = operations_by_route(True).get((method, route_of(request) or ""))
        if operation is not None:
            check_names(request, operation.query.__struct_encode_fields__ if operation.query is not None else ())
    return await handler(request)
