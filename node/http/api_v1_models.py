"""`/api/v1/models`: the list, filtered, sorted and in pages; one model with all that is known of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import msgspec
from aiohttp import hdrs, web
from msgspec import Meta

from node.http import model_replies as replies
from node.http.access import ACCESS
from node.http.api_v1 import in_time, success
from node.http.bodies import model_name, read_query
from node.http.context import GATEWAY, SETTINGS
from node.http.examples import example_usage
from node.http.model_figures import FIGURES
from node.http.schemas import NoQuery
from node.model_index import ModelQuery

Parameters = Annotated[int, Meta(ge=0, le=2**62)]
Word = Annotated[str, Meta(min_length=1, max_length=64)]


class Query(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Parameters of GET /api/v1/models. Without `search`, relevance is the order of names."""

    page: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    search: Annotated[str, Meta(max_length=256)] | None = None
    category: Word | None = None
    framework: Word | None = None
    min_parameters: Parameters | None = None
    max_parameters: Parameters | None = None
    sort: Literal["relevance", "name", "popularity", "size", "created_at"] = "relevance"
    order: Literal["asc", "desc"] | None = None


def _links(query: Query, pages: int) -> dict[str, str]:
    given = {name: value for name in query.__struct_fields__ if (value := getattr(query, name)) is not None and name != "page"}
    if query.sort == "relevance":
        del given["sort"]

    def link(page: int, rel: str) -> str:
        return f'</api/v1/models?{urlencode({"page": page, **given})}>; rel="{rel}"'

    near = [(query.page - 1, "prev")] if 1 < query.page <= pages + 1 else []
    near += [(query.page + 1, "next")] if query.page < pages else []
    return {"Link": ", ".join(link(page, rel) for page, rel in [(1, "first"), *near, (max(1, pages), "last")])}


def _index_query(query: Query) -> ModelQuery:
    return ModelQuery(
        search=query.search,
        category=query.category,
        framework=query.framework,
        min_parameters=query.min_parameters,
        max_parameters=query.max_parameters,
        sort=query.sort,
        order=query.order,
        limit=query.limit,
        offset=(query.page - 1) * query.limit,
    )


async def list_models(request: web.Request) -> web.StreamResponse:
    query = read_query(request, Query)
    found, total = await in_time(request, request.app[GATEWAY].page(_index_query(query)), "the list of models")
    pages = -(-total // query.limit)
    page = replies.ModelPage(
        models=[replies.model_view(info, request.app[FIGURES]) for info in found],
        pagination=replies.Pagination(
            current_page=query.page,
            total_pages=pages,
            total_models=total,
            has_next=query.page < pages,
            has_previous=query.page > 1,
        ),
    )
    return success(page, _links(query, pages))


async def one_model(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    info = await in_time(request, request.app[GATEWAY].model(model_name(request)), "the model")
    settings = request.app[SETTINGS]
    scheme = "https" if request.secure or settings.behind_proxy else "http"
    examples = example_usage(f"{scheme}://{request.headers[hdrs.HOST]}", info.model_id, not settings.open, info.category)
    known, used = replies.fields_of(info, request.app[FIGURES]), await _statistics(request, info.model_id)
    return success(replies.ModelDetail(**known, usage_statistics=used, example_usage=examples))


async def _statistics(request: web.Request, model_id: str) -> dict[str, Any]:
    """Requests and tokens of everybody at this node together, and since when they are counted; null where there are no accounts."""
    access = request.app.get(ACCESS)
    nothing = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
    counted = None if access is None else (await access.accounts.usage.totals()).get(model_id, nothing)
    return {"here": counted, "measured_by": request.app[FIGURES].measurer}


ROUTES = [web.get("/api/v1/models", list_models)]
LAST_ROUTES = [web.get("/api/v1/models/{id:.+}", one_model)]
"""After all that is more special than a name with slashes in it."""
