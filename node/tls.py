"""This node's TLS towards other nodes: its own certificate, pinned by them."""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path


def tls_context(key: bytes, certificate: bytes) -> ssl.SSLContext:
    """TLS 1.2 or newer from PEM; the key is in a file only while OpenSSL reads it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with tempfile.TemporaryDirectory(prefix="mf-tls-") as folder:
        path = Path(folder) / "pem"
        path.touch(mode=0o600)
        path.write_bytes(key + b"\n" + certificate)
        context.load_cert_chain(path)
    return context
