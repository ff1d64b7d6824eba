"""Delivers notices: one POST each, signed, tried again five times over an hour and a half, then given up, which is logged.

    MF-Event: upload.finished      MF-Delivery: dlv_…      MF-Signature: t=1700000000,v1=<hex>

v1 is HMAC-SHA256 under the webhook's secret over `t`, a dot and the body. `t` is the time of sending: the receiver refuses old ones, and
takes a delivery's id once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import socket
import time
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from node.webhooks.book import Notice, WebhookBook
from node.webhooks.target import check_url, is_allowed, is_public
from protocol.errors import MfError

log = logging.getLogger(__name__)
AGAIN_AFTER = (1.0, 10.0, 60.0, 600.0, 3_600.0)
WITHIN = 10.0
AT_ONCE = 8
LOOK_EVERY = 60.0


def signature(secret: str, at: int, body: bytes) -> str:
    """The header's value."""
    return f"t={at},v1={hmac.new(secret.encode(), f'{at}.'.encode() + body, hashlib.sha256).hexdigest()}"


class PublicResolver(AbstractResolver):
    """Names to public addresses alone, but for hosts the owner listed: who connects gets these and no others."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = allowed

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        free = is_allowed(host, port, self._allowed)
        good = [(kind, str(address[0])) for kind, _, _, _, address in found if free or is_public(str(address[0]))]
        if not good:
            raise OSError(None, "the name has no public address")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=int(kind), proto=0, flags=socket.AI_NUMERICHOST)
            for kind, address in good
        ]

    async def close(self) -> None:
        return None


class Webhooks:
    """`run` delivers for ever. `allowed`: hosts that may be called though they aren't public."""

    def __init__(self, book: WebhookBook, allowed: Collection[str] = (), now: Callable[[], float] = time.time) -> None:
        self.book = book
        self.allowed = frozenset(allowed)
        self._now = now
        self._some = asyncio.Event()

    async def tell(self, who: str, event: str, data: dict[str, Any]) -> None:
        """Durable when it returns; sent soon."""
        body = json.dumps({"event": event, "created_at": int(self._now()), "data": data}, separators=(",", ":")).encode()
        if await self.book.enter(who, event, body):
            self._some.set()

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(resolver=PublicResolver(self.allowed), use_dns_cache=False, limit=AT_ONCE, force_close=True)
        timeout = aiohttp.ClientTimeout(total=WITHIN)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            while True:
                self._some.clear()
                try:
                    wait = await self._round(session)
                except MfError as error:
                    log.warning("webhooks wait: %s", error, extra={"event": "webhooks_wait"})
                    wait = LOOK_EVERY
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._some.wait()

    async def _round(self, session: aiohttp.ClientSession) -> float:
        """All that are due; seconds until the next one is."""
        while notices := await self.book.due(AT_ONCE):
            await asyncio.gather(*(self._deliver(session, notice) for notice in notices))
        due = await self.book.next_due()
        return LOOK_EVERY if due is None else min(LOOK_EVERY, max(0.05, due - self._now()))

    async def _deliver(self, session: aiohttp.ClientSession, notice: Notice) -> None:
        fault = await self._post(session, notice)
        if fault is None:
            await self.book.done(notice)
            return
        fields = {"webhook": notice.webhook.id, "delivery": notice.id, "tries": notice.tries + 1, "reason": fault}
        if notice.tries >= len(AGAIN_AFTER):
            log.warning("a webhook is given up", extra={"event": "webhook_given_up", "fields": fields})
            await self.book.done(notice)
            return
        log.info("a webhook is tried again", extra={"event": "webhook_again", "fields": fields})
        await self.book.again(notice, self._now() + AGAIN_AFTER[notice.tries])

    async def _post(self, session: aiohttp.ClientSession, notice: Notice) -> str | None:
        """None once it was taken (2xx); else why not, without anything of the receiver's."""
        url, at = notice.webhook.url, int(self._now())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "modelfloat",
            "MF-Event": notice.event,
            "MF-Delivery": notice.id,
            "MF-Signature": signature(notice.webhook.secret, at, notice.body),
        }
        try:
            check_url(url, self.allowed)
            async with session.post(url, data=notice.body, headers=headers, allow_redirects=False) as reply:
                return None if 200 <= reply.status < 300 else f"{urlsplit(url).hostname} answered {reply.status}"
        except MfError as error:
            return error.message
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return f"{urlsplit(url).hostname}: {type(error).__name__}"
