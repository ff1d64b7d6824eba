from __future__ import annotations

import asyncio
import hashlib
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.network.certificate import make_certificate, peer_of_certificate
from protocol.errors import BadInput
from protocol.ids import peer_from_public


def test_the_certificate_proves_the_peer_and_lasts() -> None:
    key = Ed25519PrivateKey.generate()
    _, certificate, fingerprint = make_certificate(key)
    parsed = x509.load_pem_x509_certificate(certificate)
    assert peer_of_certificate(certificate) == peer_from_public(key.public_key().public_bytes_raw())
    assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode())).digest() == fingerprint
    assert parsed.not_valid_after_utc > datetime.now(UTC) + timedelta(days=3_650)


def test_a_certificate_of_another_make_is_refused() -> None:
    with pytest.raises(BadInput):
        peer_of_certificate(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


async def test_it_serves_https_to_who_pins_it_and_nobody_else(tmp_path: Path) -> None:
    key_pem, certificate, fingerprint = make_certificate(Ed25519PrivateKey.generate())
    (tmp_path / "key").write_bytes(key_pem)
    (tmp_path / "certificate").write_bytes(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}/"
    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(5), session.get(url, ssl=aiohttp.Fingerprint(fingerprint)) as response:
            assert await response.text() == "hello"
        with pytest.raises(aiohttp.ServerFingerprintMismatch):
            await session.get(url, ssl=aiohttp.Fingerprint(bytes(32)))
    await runner.cleanup()
