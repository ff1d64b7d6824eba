"""Changing what is said of a model, and taking it back: its owner's alone, at the node that publishes it."""

from __future__ import annotations

from aiohttp import web
from msgspec import UNSET

from node.http import upload_schemas as schemas
from node.http.access import ACCESS, access_of
from node.http.api_v1 import success
from node.http.bodies import model_name, read_json
from node.http.context import SETTINGS
from node.http.metering import caller
from node.http.publishing import publishing_of
from protocol.errors import BadInput, Misdirected
from protocol.ids import ModelId, model_text


async def change(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, schemas.ModelChange, request.app[SETTINGS])
    said = {name: value for name in ("description", "license") if (value := getattr(body, name)) is not UNSET}
    if not said:
        raise BadInput("nothing to change", hint="give description or license", details={"param": "description"})
    try:
        card = await publishing_of(request).owned.change(caller().who, model_name(request), said)
    except Misdirected as error:
        raise _with_publisher(request, error) from None
    model = model_text(ModelId(card.model))
    await access_of(request).journal.add("model_changed", user=caller().name, model=model)
    return success(schemas.ChangedModel(model_id=model, name=card.full_name(), description=card.description, license=card.license))


async def withdraw(request: web.Request) -> web.StreamResponse:
    try:
        done = await publishing_of(request).owned.withdraw(caller().who, model_name(request))
    except Misdirected as error:
        raise _with_publisher(request, error) from None
    await access_of(request).journal.add("model_withdrawn", user=caller().name, model=done["model_id"], names=done["names"][:16])
    return success(schemas.Withdrawn(**done))


def _with_publisher(request: web.Request, error: Misdirected) -> Misdirected:
    """The same with the address of the node to ask, where it is known."""
    access = request.app.get(ACCESS)
    where = {} if access is None else access.home_of(str(error.details.get("publisher", "")))
    return Misdirected(error.message, hint=error.hint, details={"home": where})


LAST_ROUTES = [
    web.patch("/api/v1/models/{id:.+}", change),
    web.delete("/api/v1/models/{id:.+}", withdraw),
]
