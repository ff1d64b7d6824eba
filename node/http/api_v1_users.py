"""`/api/v1/users/me` and `/api/v1/audit`: what is kept about the caller, what he used, how he leaves; what was done here."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
from aiohttp import web

from node.http import account_schemas as schemas
from node.http.access import METER_KEY, access_of
from node.http.api_v1 import success
from node.http.api_v1_auth import own_address, own_user
from node.http.belongings import belongings, forget
from node.http.bodies import read_json, read_query
from node.http.context import GATEWAY, SETTINGS
from node.http.metering import caller
from node.http.publishing import PUBLISHING
from node.http.schemas import NoQuery
from protocol.errors import BadInput, MfError, NotFound

_PERIODS = {"day": 1, "week": 7, "month": 30, "year": 365}


async def me(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    access = access_of(request)
    who = caller()
    user = access.accounts.users.get(who.user or "")
    return success(
        schemas.Me(
            user_id=who.user,
            username=who.name,
            account=who.account.hex() if who.account else None,
            tier=who.tier,
            scopes=sorted(who.scopes),
            home=access.accounts.home,
            totp=user is not None and user.totp_on,
        )
    )


async def leave(request: web.Request) -> web.StreamResponse:
    """Deletes the account, its keys, logins, usage, uploads, webhooks, teams. Published models stay: they belong to who holds them."""
    access = access_of(request)
    _, user = own_user(access)
    body = await read_json(request, schemas.ConfirmRequest, request.app[SETTINGS])
    await access.accounts.sessions.confirm(user, body.password, body.totp_code, own_address(request))
    await access.journal.add("account_deleted", user_id=user.id)
    publishing = request.app.get(PUBLISHING)
    if publishing is not None:
        await forget(publishing, user)
    await access.accounts.delete(user)
    return success(schemas.Done(done="the account is gone"))


async def export(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    access = access_of(request)
    _, user = own_user(access)
    publishing = request.app.get(PUBLISHING)
    more = {} if publishing is None else await belongings(publishing, user)
    reply = success(await access.accounts.export(user) | more)
    reply.headers["Cache-Control"] = "no-store"
    return reply


def _span(query: schemas.UsageQuery) -> tuple[date, date]:
    try:
        last = date.fromisoformat(query.end_date) if query.end_date else datetime.now(UTC).date()
        first = date.fromisoformat(query.start_date) if query.start_date else last - timedelta(days=_PERIODS[query.period] - 1)
    except (ValueError, OverflowError):
        raise BadInput("start_date and end_date are days like 2026-01-31", details={"param": "start_date"}) from None
    if first > last or (last - first).days > 400:
        raise BadInput("start_date comes before end_date, at most 400 days", details={"param": "start_date"})
    return first, last


async def usage(request: web.Request) -> web.StreamResponse:
    query = read_query(request, schemas.UsageQuery)
    access = access_of(request)
    first, last = _span(query)
    who = caller()
    lines = await access.accounts.usage.days(who.who, first.isoformat(), last.isoformat())
    names = await _names(request, {line["model"] for line in lines})
    summary = {"start_date": first.isoformat(), "end_date": last.isoformat(), **_sum(lines)}
    by_day = [{"date": day, **_sum([line for line in lines if line["date"] == day])} for day in sorted({line["date"] for line in lines})]
    by_model = [
        {"model_id": model, "name": names.get(model), **_sum([line for line in lines if line["model"] == model])}
        for model in sorted({line["model"] for line in lines})
    ]
    return success(schemas.UsageReport(usage_summary=summary, daily_breakdown=by_day, model_usage=by_model, rate_limits=_limits(request)))


async def _names(request: web.Request, models: set[str]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for model in models:
        try:
            found[model] = (await request.app[GATEWAY].model(model)).name
        except MfError:
            found[model] = None
    return found


def _sum(lines: list[dict[str, Any]]) -> dict[str, int]:
    prompt, completion = sum(line["prompt_tokens"] for line in lines), sum(line["completion_tokens"] for line in lines)
    requests = sum(line["requests"] for line in lines)
    return {"requests": requests, "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _limits(request: web.Request) -> dict[str, Any]:
    who, windows = caller(), access_of(request).accounts.windows
    tier = windows.tier(who.tier)
    standing = request[METER_KEY].standing
    return {
        "tier": tier.name,
        "requests_per_hour": tier.requests_per_hour,
        "tokens_per_month": tier.tokens_per_month,
        "requests_at_once": tier.at_once,
        "requests_remaining": standing.remaining if standing and standing.limit is not None else None,
        "tokens_this_month": windows.month(who.subject, time.time()),
    }


async def audit(request: web.Request) -> web.StreamResponse:
    """The journal's newest lines first, and whether its chain holds."""
    query = read_query(request, schemas.AuditQuery)
    access = access_of(request)
    entries = await access.journal.read(query.limit, query.below)
    verdict = await access.journal.check() if query.verify else None
    shown = None if verdict is None else {"lines": verdict.lines, "head": verdict.head, "fault": verdict.fault}
    return success({"entries": entries, "verified": shown})


async def stage_audits(request: web.Request) -> web.StreamResponse:
    """What audits found of other nodes' stages, the newest first, and how much was looked at."""
    query = read_query(request, schemas.StageAuditQuery)
    report = access_of(request).stage_audits
    if report is None:
        raise NotFound("this node looks at nobody's stages")
    page = await report.page(query.limit, query.below, verify=query.verify)
    return success(msgspec.convert(page, schemas.StageAudits))


ROUTES = [
    web.get("/api/v1/users/me", me),
    web.delete("/api/v1/users/me", leave),
    web.get("/api/v1/users/me/export", export),
    web.get("/api/v1/users/me/usage", usage),
    web.get("/api/v1/audit", audit),
    web.get("/api/v1/audit/stages", stage_audits),
]
