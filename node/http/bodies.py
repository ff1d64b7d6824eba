"""Reads what a request gives (JSON body, query, name in the path) into its struct, or says which field is wrong."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from aiohttp import web

from node.http.settings import HttpSettings
from protocol import limits
from protocol.errors import BadInput, DeadlineExceeded, TooLarge

T = TypeVar("T", bound=msgspec.Struct)

_AT = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_MISSING = re.compile(r"required field `([^`]*)`")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def parse_json(raw: bytes, kind: type[T], *, unsupported: frozenset[str] = frozenset()) -> T:
    """The struct; `BadInput` names the fields (`details["param"]`). `unsupported`: known names that this node doesn't honour."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise _named(str(error), raw, kind, unsupported) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadInput("the body isn't well-formed JSON", hint="check its quotes, commas and brackets") from None
    except RecursionError:
        raise BadInput("the body's JSON is nested too deeply") from None


def _named(message: str, raw: bytes, kind: type[T], unsupported: frozenset[str]) -> BadInput:
    at = _AT.search(message)
    path = at.group(1) if at else ""
    said = _AT.sub("", message)
    unknown = _UNKNOWN.search(message)
    if unknown and not path:
        return _unknown_fields(_strangers(raw, kind) or [unknown.group(1)], unsupported)
    leaf = unknown or _MISSING.search(message)
    param = ".".join(part for part in (path, leaf.group(1) if leaf else "") if part)
    return BadInput(f"{param or 'the body'}: {said[:1].lower()}{said[1:]}", details={"param": param[:200]} if param else None)


def _strangers(raw: bytes, kind: type[T]) -> list[str]:
    """All top-level names that the struct doesn't have: the decoder stops at the first."""
    try:
        given = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return [name for name in given if name not in kind.__struct_encode_fields__]


def _unknown_fields(names: list[str], unsupported: frozenset[str]) -> BadInput:
    shown = [name[:80] for name in names[:16]]
    known = [name for name in shown if name in unsupported]
    strange = [name for name in shown if name not in unsupported]
    parts = [f"not supported by this node: {', '.join(known)}"] if known else []
    parts += [f"unknown option: {', '.join(strange)}"] if strange else []
    return BadInput("; ".join(parts), hint="leave them out", details={"param": shown[0], "fields": shown})


async def read_json(request: web.Request, kind: type[T], settings: HttpSettings, *, unsupported: frozenset[str] = frozenset()) -> T:
    if request.content_length is not None and request.content_length > settings.max_body:
        raise TooLarge(f"the body is {request.content_length} bytes, this node takes {settings.max_body}")
    try:
        async with asyncio.timeout(settings.body_timeout):
            raw = await request.read()
    except TimeoutError:
        raise DeadlineExceeded(f"the body didn't arrive within {settings.body_timeout:g} s") from None
    return parse_json(raw, kind, unsupported=unsupported)


def check_names(request: web.Request, known: Sequence[str]) -> None:
    """`BadInput` names query fields that are none of these, or given more than once."""
    query = request.query
    twice = sorted({name for name in query if len(query.getall(name)) > 1})
    if twice:
        raise BadInput(f"given more than once: {', '.join(twice)[:200]}", details={"param": twice[0][:80]})
    strange = [name for name in query if name not in known]
    if strange:
        raise _unknown_fields(strange, frozenset())


def read_query(request: web.Request, kind: type[T]) -> T:
    query = request.query
    check_names(request, kind.__struct_encode_fields__)
    try:
        return msgspec.convert(dict(query), kind, strict=False)
    except msgspec.ValidationError as error:
        raise _named(str(error), b"", kind, frozenset()) from None


def model_name(request: web.Request) -> str:
    """The model named in the path, percent-decoded."""
    name = request.match_info["id"]
    if len(name) > limits.MAX_NAME or _CONTROL.search(name):
        raise BadInput(f"a model's name has at most {limits.MAX_NAME} characters, none of them control characters", details={"param": "id"})
    return name
