"""Changing what is said of a model, and taking it back: its owner's alone, or who has the role; at the node that publishes it."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from msgspec import UNSET

from node.http import upload_schemas as schemas
from node.http.access import ACCESS, access_of
from node.http.api_v1 import success
from node.http.bodies import model_name, read_json
from node.http.context import SETTINGS
from node.http.metering import caller
from node.http.publishing import publishing_of
from node.private.vault import Opened
from protocol.errors import BadInput, Misdirected
from protocol.ids import ModelId, model_text
from protocol.private import Said
from protocol.records import Card


async def change(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, schemas.ModelChange, request.app[SETTINGS])
    said = {name: value for name in ("description", "license") if (value := getattr(body, name)) is not UNSET}
    if not said:
        raise BadInput("nothing to change", hint="give description or license", details={"param": "description"})
    model, told = await _changed(request, said)
    await access_of(request).journal.add("model_changed", user=caller().name, model=model)
    return success(schemas.ChangedModel(model_id=model, name=told.full_name(), description=told.description, license=told.license))


async def _changed(request: web.Request, said: dict[str, str | None]) -> tuple[str, Card | Said]:
    publishing = publishing_of(request)
    opened = await private_model(request)
    if opened is not None:
        return model_text(opened.model), await publishing.sharing.change(caller(), opened.model, said)
    try:
        card = await publishing.owned.change(caller().who, model_name(request), said)
    except Misdirected as error:
        raise _with_publisher(request, error) from None
    return model_text(ModelId(card.model)), card


async def private_model(request: web.Request) -> Opened | None:
    """The private model that the path names to this caller, None for a public one; `Misdirected` where another node publishes it."""
    publishing = publishing_of(request)
    opened = await publishing.private.find(caller(), model_name(request))
    if opened is not None and opened.publisher != access_of(request).accounts.home:
        error = Misdirected("another node publishes this model", hint="ask it there", details={"publisher": opened.publisher})
        raise _with_publisher(request, error)
    return opened


async def withdraw(request: web.Request) -> web.StreamResponse:
    done = await _withdrawn(request)
    await access_of(request).journal.add("model_withdrawn", user=caller().name, model=done["model_id"], names=done["names"][:16])
    return success(schemas.Withdrawn(**done))


async def _withdrawn(request: web.Request) -> dict[str, Any]:
    publishing = publishing_of(request)
    opened = await private_model(request)
    if opened is not None:
        return await publishing.sharing.withdraw(caller(), opened.model)
    try:
        return await publishing.owned.withdraw(caller().who, model_name(request))
    except Misdirected as error:
        raise _with_publisher(request, error) from None


def _with_publisher(request: web.Request, error: Misdirected) -> Misdirected:
    """The same with the address of the node to ask, where it is known."""
    access = request.app.get(ACCESS)
    where = {} if access is None else access.home_of(str(error.details.get("publisher", "")))
    return Misdirected(error.message, hint=error.hint, details={"home": where})


LAST_ROUTES = [
    web.patch("/api/v1/models/{id:.+}", change),
    web.delete("/api/v1/models/{id:.+}", withdraw),
]
