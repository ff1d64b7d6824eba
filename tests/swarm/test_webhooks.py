"""A node with TLS of its own and a webhook: registered by REST, a signed POST comes to whom the owner listed, again after a failure."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.processes import Node
from tests.support.synthetic import tiny_llama
from tests.support.wait import wait_until
from tests.swarm.api import data, finished, send, writer

pytestmark = pytest.mark.swarm
ARRIVES_WITHIN = 15.0


class Receiver:
    """Answers each event's first delivery with 500, and what comes then with 200."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                first = not receiver.of(self.headers["MF-Event"])
                receiver.got.append((self.headers["MF-Event"], dict(self.headers), body))
                self.send_response(500 if first else 200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, event: str) -> list[tuple[str, dict[str, str], bytes]]:
        return [one for one in self.got if one[0] == event]


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("hooks")
    made = Node(folder / "node", "--http-access", "keyed", "--tls", "auto", env={"MF_WEBHOOK_TARGETS": receiver.host})
    made.start()
    yield made
    made.kill()


def test_the_certificate_is_the_nodes_own_and_its_fingerprint_is_told(node: Node) -> None:
    url = urlsplit(node.url)
    assert url.scheme == "https"
    assert node.http("GET", "/health")[0] == 200, "who trusts http.crt is answered"
    stranger = http.client.HTTPSConnection(url.hostname or "", url.port, timeout=10.0, context=ssl.create_default_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        stranger.request("GET", "/health")
    shown = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((url.hostname or "", url.port or 0)))
    assert hashlib.sha256(shown).digest().hex(":").upper() == node.ready["http_fingerprint"]
    assert (node.data_dir / "http.key").stat().st_mode & 0o077 == 0
    plain = http.client.HTTPConnection(url.hostname or "", url.port, timeout=10.0)
    plain.request("GET", "/health")
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        plain.getresponse()


def test_notices_of_a_batch_and_of_uploads_arrive_signed_and_again_after_a_failure(node: Node, receiver: Receiver, tmp_path: Path) -> None:
    key = writer(node, "ann")
    for url in ("http://127.0.0.1:9/x", "http://localhost/x", "https://169.254.169.254/latest", "http://10.0.0.1/"):
        status, _, raw = node.http("POST", "/api/v1/webhooks", {"url": url}, {"Authorization": f"Bearer {key}"})
        assert (status, json.loads(raw)["error"]["code"]) == (403, "forbidden"), url
    made = data(node, "POST", "/api/v1/webhooks", {"url": f"http://{receiver.host}/hook"}, key)
    asked = {"inputs": [{"id": "a", "text": "never told"}]}
    batch = data(node, "POST", "/api/v1/models/nothing/inference/batch", asked, key)
    assert (batch["succeeded"], batch["failed"]) == (0, 1)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    failed = finished(node, send(node, {"name": "broken"}, broken, key)["upload_id"], key)
    done = finished(node, send(node, {"name": "tiny"}, tiny_llama(tmp_path / "model"), key)["upload_id"], key)
    assert (failed["stage"], done["stage"]) == ("failed", "finished"), done
    for event, id_field, value in (
        ("batch.finished", "batch_id", batch["batch_id"]),
        ("upload.failed", "upload_id", failed["upload_id"]),
        ("upload.finished", "upload_id", done["upload_id"]),
    ):
        wait_until(lambda event=event: len(receiver.of(event)) == 2, ARRIVES_WITHIN, f"{event} to come a second time")  # type: ignore[misc]
        deliveries = receiver.of(event)
        assert len({headers["MF-Delivery"] for _, headers, _ in deliveries}) == 1
        for _, headers, body in deliveries:
            at, v1 = (part.partition("=")[2] for part in headers["MF-Signature"].split(","))
            assert v1 == hmac.new(made["secret"].encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
            assert abs(int(at) - time.time()) < 300
            told = json.loads(body)
            assert (told["event"], told["data"][id_field]) == (event, value)
            assert b"never told" not in body
    data(node, "DELETE", f"/api/v1/webhooks/{made['id']}", token=key)
    assert data(node, "GET", "/api/v1/webhooks", token=key)["webhooks"] == []
    data(node, "POST", "/api/v1/models/nothing/inference/batch", asked, key)
    assert len(receiver.of("batch.finished")) == 2
