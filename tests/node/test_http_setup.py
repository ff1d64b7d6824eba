"""The HTTP listener's rules beyond loopback, and a certificate of its own that a client can check."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from node.accounts_setup import announced_urls
from node.config import load_config
from node.http.app import HttpServer
from node.http_setup import CERTIFICATE, KEY, http_settings, tls_context
from protocol.errors import BadInput
from tests.support.fake_gateway import FakeGateway


def config(folder: Path, **flags: Any) -> Any:
    return load_config(folder, flags, {})


@pytest.mark.parametrize("address", ["0.0.0.0:8640", "[::]:8640", "192.0.2.1:8640", "node.example:8640"])
def test_beyond_loopback_something_must_protect_it(tmp_path: Path, address: str) -> None:
    with pytest.raises(BadInput, match="in the open"):
        http_settings(config(tmp_path, http=address))
    for word in ({"tls": "auto"}, {"insecure_http": True}, {"behind_proxy": True}):
        made = http_settings(config(tmp_path, http=address, **word))
        assert (made.open, made.local) == (False, False)
    assert http_settings(config(tmp_path, http=address, tls="auto", http_access="open")).open


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "localhost:0"])
def test_loopback_is_open_unless_a_proxy_stands_there(tmp_path: Path, address: str) -> None:
    made = http_settings(config(tmp_path, http=address))
    assert (made.open, made.local) == (True, True)
    behind = http_settings(config(tmp_path, http=address, behind_proxy=True))
    assert (behind.open, behind.local) == (False, False)
    assert not http_settings(config(tmp_path, http=address, http_access="keyed")).open


async def test_a_client_can_check_the_certificate(tmp_path: Path) -> None:
    chosen = config(tmp_path, http="127.0.0.1:0", tls="auto", hosts=("node.example",))
    context = tls_context(tmp_path, chosen)
    made = (tmp_path / CERTIFICATE).read_bytes()
    assert (tmp_path / KEY).stat().st_mode & 0o077 == 0
    server = HttpServer(FakeGateway(), http_settings(chosen))
    await server.start(context)
    assert server.url.startswith("https://")
    trusting = ssl.create_default_context(cafile=tmp_path / CERTIFICATE)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{server.url}/health", ssl=trusting) as reply:
            assert reply.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"{server.url}/health")
    await server.stop()
    tls_context(tmp_path, chosen)
    assert (tmp_path / CERTIFICATE).read_bytes() == made, "kept while it is good"
    tls_context(tmp_path, config(tmp_path, http="127.0.0.1:0", tls="auto", hosts=("other.example",)))
    assert (tmp_path / CERTIFICATE).read_bytes() != made


def test_others_are_told_what_they_can_reach() -> None:
    assert announced_urls("http", "127.0.0.1", 80, ["127.0.0.1"]) == ["http://127.0.0.1:80"]
    assert announced_urls("http", "127.0.0.1", 80, ["198.51.100.1"]) == []
    assert announced_urls("https", "0.0.0.0", 443, ["198.51.100.1", "2001:db8::1"]) == [
        "https://198.51.100.1:443",
        "https://[2001:db8::1]:443",
    ]
