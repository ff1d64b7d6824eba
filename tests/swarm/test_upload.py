"""A model uploaded over HTTP to one node of three runs at another, told stage by stage; its owner changes and takes it back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Swarm
from tests.support.synthetic import tiny_llama
from tests.support.wait import wait_until
from tests.swarm import tools
from tests.swarm.api import data, finished, send, writer

pytestmark = pytest.mark.swarm


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with Swarm(tmp_path_factory.mktemp("upload"), 3, "--http-access", "keyed") as swarm:
        yield swarm


def test_uploaded_tried_run_elsewhere_changed_and_taken_back(three: Swarm, tmp_path: Path) -> None:
    home, other, _ = three.nodes
    folder, key = tiny_llama(tmp_path / "model"), writer(home, "ann")
    began = time.monotonic()
    told = send(home, {"name": "tiny", "description": "as uploaded"}, folder, key)
    done = finished(home, told["upload_id"], key)
    tools.report("upload of a tiny model, published and tried", f"{time.monotonic() - began:.1f} s")
    assert done["stage"] == "finished", done
    checks = {check["name"]: check for check in done["validation"]}
    assert list(checks) == ["header_check", "hashes", "load", "stage_self_test", "generation"]
    assert all(check["passed"] for check in checks.values()), checks
    assert "8 tokens" in checks["generation"]["detail"]
    assert done["distribution"]["durable"] == done["distribution"]["shards"] == 3 * done["coding"]["groups"]
    uploads = home.data_dir / "uploads"
    wait_until(lambda: not list(uploads.rglob("*.safetensors")), 10.0, "what was sent to go, now that it lies in shards")
    token = {"audience": other.peer_id, "scopes": ["inference", "models:read"]}
    there = data(home, "POST", "/api/v1/auth/tokens", token, key)["token"]
    wanted = {"input": {"text": "The capital", "max_tokens": 4}}
    assert data(other, "POST", f"/api/v1/models/{done['model_id']}/inference", wanted, there)["result"]["tokens_generated"] == 4
    data(home, "PATCH", "/api/v1/models/tiny", {"description": "better"}, key)
    described = lambda: data(other, "GET", f"/api/v1/models/{done['model_id']}", token=there)["description"] == "better"  # noqa: E731
    wait_until(described, 10.0, "the other node to hear of it")
    gone = data(home, "DELETE", "/api/v1/models/tiny", token=key)
    assert gone["shards_dropped"]
    wait_until(lambda: data(other, "GET", "/api/v1/models", token=there)["models"] == [], 10.0, "the name to be gone")
    for node in three.nodes:
        assert node.cli("holdings")["holdings"] == [], node.data_dir.name


def test_a_model_that_cannot_run_is_said_so_and_one_that_lies_is_not_taken(three: Swarm, tmp_path: Path) -> None:
    home = three.nodes[0]
    key = writer(home, "bea")
    folder = tiny_llama(tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-64])
    told = send(home, {"name": "cut"}, folder, key)
    done = finished(home, told["upload_id"], key)
    assert (done["stage"], done["error"]["code"]) == ("failed", "bad_request")
    assert [(check["name"], check["passed"]) for check in done["validation"]] == [("header_check", False)]
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    told = send(home, {"name": "mute"}, folder, key)
    done = finished(home, told["upload_id"], key)
    passed = {check["name"]: check["passed"] for check in done["validation"]}
    assert (done["stage"], passed["hashes"], passed["load"]) == ("finished", True, False)
    assert done["model_id"] is not None
