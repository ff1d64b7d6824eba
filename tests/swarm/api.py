"""Calls of `/api/v1` as an account makes them, for the tests of whole swarms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.processes import Node
from tests.support.wait import wait_until

PASSWORD = "correct horse 9"
EDGE = "an-edge-of-its-own"


def data(node: Node, method: str, path: str, body: Any = None, token: str | None = None, **headers: str) -> dict[str, Any]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    status, _, raw = node.http(method, path, body, given | ({"Authorization": f"Bearer {token}"} if token else {}))
    assert status < 300, raw
    return dict(json.loads(raw)["data"])


def writer(node: Node, name: str) -> str:
    """A new account's key that may publish and ask."""
    account = data(node, "POST", "/api/v1/auth/register", {"username": name, "email": "a@example.org", "password": PASSWORD})
    scopes = {"scopes": ["models:write", "models:read", "inference", "account"]}
    return str(data(node, "POST", "/api/v1/auth/keys", scopes, account["api_key"])["api_key"])


def form(metadata: dict[str, Any], folder: Path) -> bytes:
    lines = [f'--{EDGE}\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{json.dumps(metadata)}\r\n'.encode()]
    for path in sorted(folder.iterdir()):
        head = f'--{EDGE}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'
        lines += [head.encode(), path.read_bytes(), b"\r\n"]
    return b"".join([*lines, f"--{EDGE}--\r\n".encode()])


def send(node: Node, metadata: dict[str, Any], folder: Path, token: str) -> dict[str, Any]:
    """A model's folder uploaded as one form."""
    kind = f"multipart/form-data; boundary={EDGE}"
    return data(node, "POST", "/api/v1/models/upload", form(metadata, folder), token, Content_Type=kind)


def finished(node: Node, upload: str, token: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def over() -> bool:
        found.update(data(node, "GET", f"/api/v1/models/upload/{upload}/status", token=token))
        return found["stage"] in ("finished", "failed")

    wait_until(over, 90.0, "the upload to be over")
    return found
