"""Accounts over a real swarm: a key made at one node is honoured at every node it is narrowed to, and refused soon after it was revoked."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import Node, Swarm, mf_node
from tests.support.wait import wait_until

pytestmark = pytest.mark.swarm
PASSWORD = "correct horse 9"
REVOKED_WITHIN = 10.0


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with Swarm(tmp_path_factory.mktemp("accounts"), 3, "--http-access", "keyed") as swarm:
        yield swarm


def call(node: Node, method: str, path: str, body: Any = None, token: str | None = None) -> tuple[int, dict[str, Any]]:
    status, _, raw = node.http(method, path, body, {"Authorization": f"Bearer {token}"} if token else None)
    return status, json.loads(raw) if raw.startswith(b"{") else {}


def data(node: Node, method: str, path: str, body: Any = None, token: str | None = None) -> dict[str, Any]:
    status, answer = call(node, method, path, body, token)
    assert status < 300, answer
    return dict(answer["data"])


def test_a_key_is_honoured_everywhere_it_is_narrowed_to_until_it_is_revoked(three: Swarm) -> None:
    home, *others = three.nodes
    account = data(home, "POST", "/api/v1/auth/register", {"username": "ann", "email": "a@example.org", "password": PASSWORD})
    key = account["api_key"]
    small = data(home, "POST", "/api/v1/auth/keys", {"name": "page", "scopes": ["inference", "models:read", "account"]}, key)
    body = {"scopes": ["models:read"]}
    tokens = {
        node: data(home, "POST", "/api/v1/auth/tokens", {"audience": node.peer_id, **body}, small["api_key"])["token"]
        for node in three.nodes
    }
    for node in three.nodes:
        assert call(node, "GET", "/api/v1/models", token=tokens[node])[0] == 200
        assert call(node, "GET", "/api/v1/models")[0] == 401
    for node in others:
        status, answer = call(node, "GET", "/api/v1/models", token=key)
        assert (status, answer["error"]["details"]["home"]["peer_id"]) == (421, home.peer_id)
        assert answer["error"]["details"]["home"]["http"] == [home.url]
        assert call(node, "GET", "/api/v1/models", token=tokens[home])[0] == 401
    began = time.monotonic()
    data(home, "DELETE", f"/api/v1/auth/keys/{small['id']}", token=key)
    assert call(home, "GET", "/api/v1/models", token=tokens[home])[0] == 401
    for node in others:
        refused = lambda node=node: call(node, "GET", "/api/v1/models", token=tokens[node])[0] == 401  # noqa: E731
        wait_until(refused, REVOKED_WITHIN, f"{node.data_dir.name} refuses the revoked key")
    print(f"revoked at both peers after {time.monotonic() - began:.2f} s")
    assert call(home, "GET", "/api/v1/models", token=key)[0] == 200, "the account's other key stays"


def test_the_owners_commands(three: Swarm) -> None:
    node = three.nodes[1]
    made = node.cli("key", "create", "--scope", "admin", "--name", "audits")
    entries = data(node, "GET", "/api/v1/audit?verify=true", token=made["api_key"])
    assert entries["verified"]["fault"] is None
    audits = data(node, "GET", "/api/v1/audit/stages?verify=true", token=made["api_key"])
    assert (audits["findings"], audits["damaged"], audits["counts"]["steps"]["run"]) == ([], [], 0)
    assert node.cli("audit", "stages", "--verify") == audits
    assert made["id"] in {key["id"] for key in node.cli("key", "list")["keys"]}
    node.cli("key", "revoke", made["id"])
    assert call(node, "GET", "/api/v1/audit", token=made["api_key"])[0] == 401
    assert node.cli("audit", "verify")["lines"] >= 2
    assert [entry["event"] for entry in node.cli("audit", "show")["entries"]][:2] == ["key_revoked", "key_made"]


def test_nothing_of_a_credential_is_logged_or_stored(three: Swarm) -> None:
    home = three.nodes[0]
    account = data(home, "POST", "/api/v1/auth/register", {"username": "bea", "email": "bea-9317@example.org", "password": PASSWORD})
    login = data(home, "POST", "/api/v1/auth/login", {"username": "bea", "password": PASSWORD})
    call(home, "GET", "/api/v1/models", token=account["api_key"][:-3] + "AAA")
    secrets = [account["api_key"][8:], login["refresh_token"][7:], login["access_token"][-80:], PASSWORD]
    files = [home.log, *(path for path in home.data_dir.rglob("*") if path.is_file())]
    for path in files:
        raw = path.read_bytes()
        assert not any(secret.encode() in raw for secret in secrets), path
        assert path.name.startswith("accounts.db") or b"bea-9317" not in raw, path


def test_a_listener_beyond_loopback_wants_tls_or_a_word(tmp_path: Path) -> None:
    done = mf_node("--data-dir", str(tmp_path / "node"), "--json", "run", "--http", "0.0.0.0:0")
    assert done.returncode == 2
    assert "tls" in json.loads(done.stdout)["error"]["hint"]
