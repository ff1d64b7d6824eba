"""JSON replies as XML, for who asks `Accept: application/xml`.

A plain mapping: an object's fields are elements, a list's items are `item` elements, null is an empty element with `nil="true"`; a
name that can't be an element's is `field name="…"`. Only written, never read: bodies in XML aren't taken, so that no entity is ever
expanded here.
"""

from __future__ import annotations

import re
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import msgspec
from aiohttp import hdrs, web

from node.http.errors import Handler

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no way to say, not even escaped."""
TYPE = "application/xml"


def wants_xml(accept: str) -> bool:
    """Whether XML is named, and with no less weight than JSON."""
    weights: dict[str, float] = {}
    for part in accept.split(","):
        kind, _, rest = part.partition(";")
        found = re.search(r"q\s*=\s*([0-9.]{1,6})", rest)
        try:
            weights[kind.strip().lower()] = float(found[1]) if found else 1.0
        except ValueError:
            continue
    xml = max(weights.get(TYPE, 0.0), weights.get("text/xml", 0.0))
    return xml > 0 and xml >= weights.get("application/json", 0.0)


def to_xml(value: Any) -> bytes:
    parts = ['<?xml version="1.0" encoding="UTF-8"?>\n']
    _write(parts, "response", value)
    return "".join(parts).encode()


def _write(parts: list[str], name: str, value: Any) -> None:
    plain = _NAME.match(name) and not name.lower().startswith("xml")
    tag, attributes = (name, "") if plain else ("field", f" name={quoteattr(_clean(name))}")
    if value is None:
        parts.append(f'<{tag}{attributes} nil="true"/>')
        return
    parts.append(f"<{tag}{attributes}>")
    if isinstance(value, dict):
        for key, item in value.items():
            _write(parts, str(key), item)
    elif isinstance(value, list):
        for item in value:
            _write(parts, "item", item)
    else:
        parts.append(_text(value))
    parts.append(f"</{tag}>")


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return escape(_clean(str(value)))


def _clean(text: str) -> str:
    return _UNWRITABLE.sub("\ufffd", text)


@web.middleware
async def xml_layer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Around everything that answers /api/v1, errors too; streams stay as they are."""
    reply = await handler(request)
    if not request.path.startswith("/api/v1/") or not wants_xml(request.headers.get(hdrs.ACCEPT, "")):
        return reply
    if isinstance(reply, web.Response) and reply.content_type == "application/json" and isinstance(reply.body, bytes):
        reply.body = to_xml(msgspec.json.decode(reply.body))
        reply.content_type, reply.charset = TYPE, "utf-8"
        reply.headers[hdrs.VARY] = "Accept"
    return reply
