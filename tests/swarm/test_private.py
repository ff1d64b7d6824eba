"""A private model in a real swarm: its readers run it at granted nodes, and no other holder's disk or wire gives anything away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.model_folder import scan
from node.model_manifest import build_manifest
from protocol.ids import digest
from tests.support.processes import Node, Swarm
from tests.support.synthetic import CHAT_TEMPLATE, tiny_llama
from tests.support.wait import wait_until
from tests.swarm import tools
from tests.swarm.api import data, finished, send, writer

pytestmark = pytest.mark.swarm
NAME = "sauce-9317"


@dataclass
class Kitchen:
    """`home` publishes, `granted` may run it, the two `others` hold shards and keep all they are sent."""

    swarm: Swarm
    home: Node
    granted: Node
    others: list[Node]
    folder: Path


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kitchen]:
    folder = tmp_path_factory.mktemp("private")
    model = tiny_llama(folder / "model", layers=4)
    options = ("--http-access", "keyed", "--lend", "both", "--max-memory", tools.memory_for_stages(model, 2, 256, "bf16"))
    with Swarm(folder, 2, *options) as swarm:
        others = []
        for number in range(2):
            tap = {"TAP": str(folder / f"tap{number}")}
            node = Node(folder / f"other{number}", *options, "--join", swarm.nodes[0].ticket, env=tap, module="tests.swarm.tapped")
            swarm.nodes.append(node)
            others.append(node.start())
        swarm.wait_met()
        yield Kitchen(swarm, swarm.nodes[0], swarm.nodes[1], others, model)


def status_of(node: Node, path: str, token: str, body: Any = None) -> int:
    return node.http("POST" if body else "GET", path, body, {"Authorization": f"Bearer {token}"})[0]


def known_bytes(folder: Path) -> list[bytes]:
    """Text of the tokenizer and its files, names of tensors, every hash of the public manifest, and weights."""
    manifest, packed = build_manifest(scan(folder), lambda done, total: None)
    texts = [
        NAME.encode(),
        CHAT_TEMPLATE[:40].encode(),
        b"<|assistant|>",
        b"LlamaForCausalLM",
        b"tokenizer",
        b"config.json",
        b"hidden_size",
    ]
    hashes = [digest(packed), *(one.digest for one in (*manifest.files, *manifest.tensors)), *(group.id for group in manifest.groups)]
    weights = (folder / "model.safetensors").read_bytes()
    runs = [weights[at : at + 48] for at in range(len(weights) // 2, len(weights) - 48, 9_973)]
    return [*texts, *(tensor.name.encode() for tensor in manifest.tensors), *hashes, *(one.hex().encode() for one in hashes), *runs]


def seen_by(kitchen: Kitchen) -> dict[str, bytes]:
    """Everything on the others' disks (their logs too) and all they were sent."""
    found = {}
    for number, node in enumerate(kitchen.others):
        paths = [node.log, node.data_dir.parent / f"tap{number}", *(path for path in node.data_dir.rglob("*") if path.is_file())]
        found |= {str(path): path.read_bytes() for path in paths}
    return found


def test_shared_run_in_stages_searched_for_and_taken_back(kitchen: Kitchen) -> None:
    home, granted = kitchen.home, kitchen.granted
    ann, bob = writer(home, "ann"), writer(granted, "bob")
    told = send(home, {"name": NAME, "private": True, "description": "of the house"}, kitchen.folder, ann)
    done = finished(home, told["upload_id"], ann)
    assert (done["stage"], done["distribution"]["peers"]) == ("finished", 4), done
    passed = {check["name"]: check["passed"] for check in done["validation"]}
    assert (passed["header_check"], passed["hashes"]) == (True, True)
    place = f"/api/v1/models/{done['model_id']}"
    wanted = {"input": {"text": "The capital", "max_tokens": 8}}
    assert data(home, "GET", place, token=ann)["private"]
    for node, token in [(granted, bob), *((other, writer(other, "carl")) for other in kitchen.others)]:
        assert data(node, "GET", "/api/v1/models", token=token)["models"] == []
        assert status_of(node, place, token) == 404
        assert status_of(node, f"{place}/inference", token, wanted) == 404
    me = data(granted, "GET", "/api/v1/users/me", token=bob)
    for identity in (me["account"], granted.peer_id):
        data(home, "POST", f"{place}/share", {"identity": identity, "role": "reader"}, ann)
    wait_until(lambda: status_of(granted, place, bob) == 200, 10.0, "the reader to hear of it")
    for name in (NAME, done["model_id"]):
        reply = data(granted, "POST", f"/api/v1/models/{name}/inference", wanted, bob)
        assert reply["result"]["tokens_generated"] == 8
        route = {stage["peer"] for stage in reply["metadata"]["compute_provider"]["route"]}
        assert route == {home.peer_id, granted.peer_id}, "the others lend as much memory, and are trusted"
    again = data(granted, "POST", f"{place}/inference", wanted, bob)
    assert again["metadata"]["cache_hit"] is False
    secrets, seen = known_bytes(kitchen.folder), seen_by(kitchen)
    for where, raw in seen.items():
        assert not [secret for secret in secrets if secret in raw], where
    held = sum(len(raw) for where, raw in seen.items() if "/shards/" in where)
    tools.report("private model, bytes searched on two other holders", f"{sum(map(len, seen.values()))}, {held} of them shards")
    assert held > 2 * (kitchen.folder / "model.safetensors").stat().st_size // 4
    for other in kitchen.others:
        assert tools.fails(other, "fetch", done["model_id"], str(kitchen.folder.parent / "never"))
    data(home, "DELETE", f"{place}/share", {"identity": me["account"]}, ann)
    wait_until(lambda: status_of(granted, place, bob) == 404, 10.0, "the reader to be left out")
    assert data(home, "DELETE", place, token=ann)["shards_dropped"]
    for node in kitchen.swarm.nodes:
        assert node.cli("holdings")["holdings"] == []
    wait_until(lambda: status_of(home, place, ann) == 404, 10.0, "nobody to announce anything of it")


def test_the_search_finds_a_public_one(kitchen: Kitchen) -> None:
    kitchen.home.cli("publish", str(kitchen.folder), "--name", "open")
    secrets = known_bytes(kitchen.folder)
    found = {secret for raw in seen_by(kitchen).values() for secret in secrets if secret in raw}
    assert len(found) > len(secrets) // 4


def test_it_comes_back_after_a_restart(kitchen: Kitchen) -> None:
    home = kitchen.home
    eve = writer(home, "eve")
    told = send(home, {"name": "kept", "private": True}, kitchen.folder, eve)
    assert finished(home, told["upload_id"], eve)["stage"] == "finished"
    assert home.stop() == 0
    kept = [path for path in home.data_dir.rglob("*") if path.is_file() and "uploads" not in path.parts]
    assert {path.name for path in kept if b"kept" in path.read_bytes()} <= {"accounts.db", "accounts.db-wal", "journal.jsonl"}
    home.start()
    assert data(home, "GET", "/api/v1/models/kept", token=eve)["private"]
    assert data(home, "GET", "/api/v1/models", token=eve)["models"][0]["name"].endswith("/kept@1")
