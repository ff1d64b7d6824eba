"""`/api/v1/models/{id}/share` and `/api/v1/teams`: who may read a private model. At the node that publishes it."""

from __future__ import annotations

from aiohttp import web

from node.http import share_schemas as schemas
from node.http.access import access_of
from node.http.api_v1 import success
from node.http.api_v1_owned import private_model
from node.http.bodies import read_json, read_query
from node.http.context import SETTINGS
from node.http.metering import caller
from node.http.publishing import publishing_of
from node.http.schemas import NoQuery
from protocol.errors import NotFound
from protocol.ids import ModelId, model_text


async def _here(request: web.Request) -> ModelId:
    """The private model named in the path, published at this node; `NotFound` for a public one: everybody reads it."""
    opened = await private_model(request)
    if opened is None:
        raise NotFound("no private model of yours is called that", hint="public models are everybody's: there is nothing to share")
    return opened.model


def _shown(model: ModelId, entries: dict[str, str]) -> schemas.Sharers:
    listed = [schemas.SharedWith(identity=reader, role=role) for reader, role in sorted(entries.items())]
    return schemas.Sharers(model_id=model_text(model), shared_with=listed)


async def share(request: web.Request) -> web.StreamResponse:
    model = await _here(request)
    body = await read_json(request, schemas.ShareRequest, request.app[SETTINGS])
    return await _set(request, model, body.identity, body.role)


async def unshare(request: web.Request) -> web.StreamResponse:
    model = await _here(request)
    body = await read_json(request, schemas.UnshareRequest, request.app[SETTINGS])
    return await _set(request, model, body.identity, None)


async def _set(request: web.Request, model: ModelId, whom: str, role: str | None) -> web.StreamResponse:
    sharing = publishing_of(request).sharing
    reader = await sharing.share(caller(), model, whom, role)
    event = "model_shared" if role else "model_unshared"
    await access_of(request).journal.add(event, user=caller().name, model=model_text(model), reader=reader, role=role)
    return success(_shown(model, sharing.listed(model)))


async def shared(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    model = await _here(request)
    return success(_shown(model, publishing_of(request).sharing.entries(caller(), model)))


async def make_team(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, schemas.TeamRequest, request.app[SETTINGS])
    await publishing_of(request).sharing.teams.make(caller().who, body.name)
    await access_of(request).journal.add("team_made", user=caller().name, team=body.name)
    reply = success(schemas.Team(name=body.name, members=[]))
    reply.set_status(201)
    return reply


async def teams(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    found = await publishing_of(request).sharing.teams.mine(caller().who)
    listed = [schemas.Team(name=name, members=[one.hex() for one in members]) for name, members in found.items()]
    return success(schemas.TeamList(teams=listed))


async def add_member(request: web.Request) -> web.StreamResponse:
    sharing, name = publishing_of(request).sharing, request.match_info["team"]
    body = await read_json(request, schemas.MemberRequest, request.app[SETTINGS])
    identity = sharing.identity_named(body.identity)
    await sharing.teams.add(caller().who, name, identity)
    return await _team_changed(request, name, "team_member_added", identity)


async def remove_member(request: web.Request) -> web.StreamResponse:
    sharing, name = publishing_of(request).sharing, request.match_info["team"]
    identity = sharing.identity_named(request.match_info["identity"])
    await sharing.teams.remove(caller().who, name, identity)
    return await _team_changed(request, name, "team_member_removed", identity)


async def _team_changed(request: web.Request, name: str, event: str, identity: bytes) -> web.StreamResponse:
    sharing = publishing_of(request).sharing
    await sharing.team_changed(name)
    await access_of(request).journal.add(event, user=caller().name, team=name, reader=identity.hex())
    return success(schemas.Team(name=name, members=[one.hex() for one in await sharing.teams.members(name)]))


async def drop_team(request: web.Request) -> web.StreamResponse:
    sharing, name = publishing_of(request).sharing, request.match_info["team"]
    await sharing.teams.drop(caller().who, name)
    await sharing.team_dropped(name)
    await access_of(request).journal.add("team_dropped", user=caller().name, team=name)
    return success({"name": name, "status": "removed"})


ROUTES = [
    web.post("/api/v1/models/{id:.+}/share", share),
    web.get("/api/v1/models/{id:.+}/share", shared, allow_head=False),
    web.delete("/api/v1/models/{id:.+}/share", unshare),
    web.post("/api/v1/teams", make_team),
    web.get("/api/v1/teams", teams, allow_head=False),
    web.put("/api/v1/teams/{team}/members", add_member),
    web.delete("/api/v1/teams/{team}/members/{identity}", remove_member),
    web.delete("/api/v1/teams/{team}", drop_team),
]
