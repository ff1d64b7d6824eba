"""`/api/v1/callers`: whom the node's owner lets in and whom not, by his own key (scope admin)."""

from __future__ import annotations

from aiohttp import web

from node.accounts.rule_desk import RuleDesk
from node.http import account_schemas as schemas
from node.http.access import access_of
from node.http.api_v1 import success
from node.http.bodies import read_json, read_query
from node.http.context import SETTINGS
from node.http.schemas import NoQuery


def _desk(request: web.Request) -> RuleDesk:
    access = access_of(request)
    return RuleDesk(access.accounts, access.journal, access.rules)


def _shown(desk: RuleDesk) -> web.Response:
    return success(schemas.CallerLists(**{name: [schemas.CallerLine(**line) for line in lines] for name, lines in desk.shown().items()}))


async def show(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    return _shown(_desk(request))


async def put(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, schemas.CallerRule, request.app[SETTINGS])
    desk = _desk(request)
    await desk.put(body.who, body.list)
    return _shown(desk)


async def drop(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, schemas.CallerNamed, request.app[SETTINGS])
    desk = _desk(request)
    await desk.drop(body.who)
    return _shown(desk)


ROUTES = [
    web.get("/api/v1/callers", show),
    web.put("/api/v1/callers", put),
    web.delete("/api/v1/callers", drop),
]
