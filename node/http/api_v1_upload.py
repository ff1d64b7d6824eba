"""`/api/v1/models/upload`: a model's files come in, whole or in ranges; the rest happens by itself and is told under …/status.

    POST   …/upload                        multipart: `metadata` (JSON), then a part for each file; or JSON that declares them
    PUT    …/upload/{id}/files/{name}      bytes of one file; Content-Range: bytes first-last/total, where it isn't the whole
    POST   …/upload/{id}/complete          no more files come
    GET    …/upload/{id}/status, GET …/upload, DELETE …/upload/{id}

Bytes go to the disk as they come. A connection that breaks loses what was in flight: the status says where to go on.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import hdrs, web

from node.http import upload_schemas as schemas
from node.http.access import ACCESS
from node.http.api_v1 import success
from node.http.bodies import parse_json, read_json, read_query
from node.http.context import SETTINGS
from node.http.metering import caller
from node.http.model_replies import moment
from node.http.multipart import in_time, parts
from node.http.publishing import publishing_of
from node.http.schemas import NoQuery
from node.publish import check_name
from node.uploads.upload import Upload
from node.uploads.uploads import Uploads
from protocol.errors import BadInput

METADATA = "metadata"
_MOST_METADATA = 4 * 1024 * 1024
_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15}|\*)")


def status_of(upload: Upload) -> schemas.UploadStatus:
    return schemas.UploadStatus(
        upload_id=upload.id,
        stage=upload.stage,
        percentage=upload.percentage,
        status_url=f"/api/v1/models/upload/{upload.id}/status",
        created_at=moment(upload.created),
        files=[
            schemas.FileState(name=name, size=file.size, received=file.received, complete=file.complete)
            for name, file in upload.files.items()
        ],
        missing=upload.missing(),
        coding=upload.coding,
        distribution=upload.distribution,
        validation=[
            schemas.UploadCheck(name=check.name, passed=check.passed, detail=check.detail, seconds=check.seconds)
            for check in upload.validation
        ],
        model_id=upload.model_id,
        name=upload.full_name,
        error=upload.failure,
    )


def _told(upload: Upload, status: int) -> web.Response:
    where = f"/api/v1/models/upload/{upload.id}"
    reply = success(status_of(upload), {"Location": where})
    reply.set_status(status)
    return reply


def _mine(request: web.Request) -> tuple[Uploads, Upload]:
    uploads = publishing_of(request).uploads
    return uploads, uploads.find(caller().who, request.match_info["upload"])


async def _begin(request: web.Request, asked: schemas.UploadRequest) -> Upload:
    for part in (asked.name, asked.version):
        check_name(part)
    publishing, who = publishing_of(request), caller().who
    publishing.owned.check_name(who, asked.name, asked.version)
    files = None if asked.files is None else [(file.name, file.size, file.sha256) for file in asked.files]
    said: dict[str, Any] = {name: getattr(asked, name) for name in ("version", "description", "license", "gguf", "private")}
    upload = await publishing.uploads.begin(who, asked.name, files, **said)
    access = request.app.get(ACCESS)
    if access is not None:
        await access.journal.add("upload_begun", user=caller().name, upload=upload.id, name=f"{asked.name}@{asked.version}")
    return upload


async def begin(request: web.Request) -> web.StreamResponse:
    kind = request.content_type.lower()
    if kind == "multipart/form-data":
        return await _multipart(request)
    if kind != "application/json":
        raise BadInput("an upload is multipart/form-data, or JSON that declares the files", hint="see /docs")
    return _told(await _begin(request, await read_json(request, schemas.UploadRequest, request.app[SETTINGS])), 201)


async def _multipart(request: web.Request) -> web.StreamResponse:
    uploads, silence = publishing_of(request).uploads, request.app[SETTINGS].body_timeout
    upload: Upload | None = None
    async for part in parts(request, silence):
        if upload is None:
            if part.name != METADATA or part.file is not None:
                raise BadInput("the first part is `metadata`, JSON", details={"param": METADATA})
            upload = await _begin(request, parse_json(await part.small(_MOST_METADATA), schemas.UploadRequest))
        elif part.file is None:
            raise BadInput(f"the part {part.name[:64]!r} has no file name", details={"param": part.name[:64]})
        else:
            declared = upload.files.get(part.file)
            await uploads.receive(upload, part.file, 0, declared.size if declared else None, part.pieces())
    if upload is None:
        raise BadInput("the body has no parts", details={"param": METADATA})
    uploads.complete(upload)
    return _told(upload, 202)


async def put(request: web.Request) -> web.StreamResponse:
    uploads, upload = _mine(request)
    name = request.match_info["name"]
    offset, length, total = _span(request)
    file = await uploads.receive(upload, name, offset, total, _body(request, length))
    shown = schemas.FileState(name=name, size=file.size, received=file.received, complete=file.complete)
    return success(shown, {"Range": f"bytes=0-{file.received - 1}"} if file.received else None)


def _span(request: web.Request) -> tuple[int, int, int | None]:
    """(first byte, bytes that follow, bytes of the whole file or None)."""
    length = request.content_length
    if length is None:
        raise BadInput("Content-Length is missing", hint="say how many bytes follow")
    given = request.headers.get(hdrs.CONTENT_RANGE)
    if given is None:
        return 0, length, length
    match = _RANGE.fullmatch(given)
    first, last = (int(match[1]), int(match[2])) if match else (0, -1)
    total = None if match is None or match[3] == "*" else int(match[3])
    if match is None or last - first + 1 != length or (total is not None and last >= total):
        raise BadInput("Content-Range is bytes first-last/total, and its bytes are the body's", details={"param": hdrs.CONTENT_RANGE})
    return first, length, total


async def _body(request: web.Request, length: int) -> AsyncIterator[bytes]:
    silence = request.app[SETTINGS].body_timeout
    while length > 0:
        piece = await in_time(request.content.readany(), silence)
        if not piece:
            raise BadInput("the body ended before its length")
        length -= len(piece)
        yield piece


async def complete(request: web.Request) -> web.StreamResponse:
    uploads, upload = _mine(request)
    uploads.complete(upload)
    return _told(upload, 202)


async def status(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    return success(status_of(_mine(request)[1]))


async def mine(request: web.Request) -> web.StreamResponse:
    read_query(request, NoQuery)
    uploads = publishing_of(request).uploads.mine(caller().who)
    return success(schemas.UploadList(uploads=[status_of(upload) for upload in uploads]))


async def cancel(request: web.Request) -> web.StreamResponse:
    uploads, upload = _mine(request)
    await uploads.cancel(upload)
    return success({"upload_id": upload.id, "status": "removed"})


ROUTES = [
    web.post("/api/v1/models/upload", begin),
    web.get("/api/v1/models/upload", mine, allow_head=False),
    web.get("/api/v1/models/upload/{upload}/status", status),
    web.post("/api/v1/models/upload/{upload}/complete", complete),
    web.put("/api/v1/models/upload/{upload}/files/{name:.+}", put),
    web.delete("/api/v1/models/upload/{upload}", cancel),
]
