"""Folders that are no model, or a hostile one: refused with the file and the rule, nothing stored anywhere, the node lives on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import CommandFailed, Node, Swarm
from tests.support.synthetic import tiny_llama
from tests.swarm.data_dirs import stored

pytestmark = pytest.mark.swarm


def refused(node: Node, *arguments: str) -> CommandFailed:
    with pytest.raises(CommandFailed) as caught:
        node.cli(*arguments)
    return caught.value


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def header(path: Path, entries: dict[str, Any], data: bytes = b"", announced: int | None = None) -> None:
    text = json.dumps(entries).encode()
    path.write_bytes((len(text) if announced is None else announced).to_bytes(8, "little") + text + data)


def tensor(shape: list[int], start: int, end: int, dtype: str = "BF16") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS: dict[str, tuple[dict[str, Any], int, str]] = {
    "overlapping": ({"a": tensor([4], 0, 8), "b": tensor([4], 4, 12)}, 12, "overlap|gap|begin"),
    "past the end": ({"a": tensor([4], 0, 8 << 30)}, 8, "outside|shape|bytes"),
    "a product that wraps": ({"a": tensor([1 << 62, 4], 0, 8)}, 8, "shape|elements|large|bytes"),
    "negative": ({"a": tensor([-4], 0, 8)}, 8, "shape|negative|int"),
    "rank nine": ({"a": tensor([1] * 8 + [4], 0, 8)}, 8, "rank|dimensions"),
    "a path for a name": ({"../../etc/x": tensor([4], 0, 8)}, 8, "name"),
    "an unknown type": ({"a": tensor([4], 0, 8, "PICKLE")}, 8, "dtype"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_absurd_tensors(calm: Swarm, folder: Path, case: str) -> None:
    entries, size, rule = HEADERS[case]
    header(folder / "model.safetensors", entries, bytes(size))
    failed = refused(calm.nodes[0], "publish", str(folder))
    assert (failed.code, failed.error["code"]) == (2, "bad_request")
    message = failed.error["message"]
    assert message.startswith("model.safetensors: ")
    assert any(word in message for word in rule.split("|")), message


def test_a_header_too_long(calm: Swarm, folder: Path) -> None:
    header(folder / "model.safetensors", {}, announced=(10 << 20) + 1)
    assert "model.safetensors" in refused(calm.nodes[0], "publish", str(folder)).error["message"]


def test_a_config_with_a_million_layers(calm: Swarm, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1_000_000}))
    message = refused(calm.nodes[0], "publish", str(folder)).error["message"]
    assert "config.json" in message
    assert "1000000" in message


def test_what_is_no_model(calm: Swarm, folder: Path, tmp_path: Path) -> None:
    """Each with the exit code of its class, the path as given, and nothing of it stored anywhere."""
    before = [stored(node.data_dir) for node in calm.nodes]
    node = calm.nodes[0]
    absent = refused(node, "publish", str(tmp_path / "absent"))
    assert (absent.code, "no such path" in absent.error["message"]) == (2, True)
    assert "not a folder" in refused(node, "publish", str(folder / "config.json")).error["message"]
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    pickled = refused(node, "publish", str(folder))
    assert "pytorch_model.bin" in pickled.error["message"]
    assert "run code" in pickled.error["message"]
    assert "safetensors" in pickled.error["hint"]
    (folder / "pytorch_model.bin").unlink()
    assert "no safetensors" in refused(node, "publish", str(folder)).error["message"]
    assert [stored(node.data_dir) for node in calm.nodes] == before


def test_a_link_out_of_the_folder(calm: Swarm, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    (folder / "notes.txt").symlink_to(secret)
    message = refused(calm.nodes[0], "publish", str(folder)).error["message"]
    assert message.startswith("notes.txt: a link out of")


def test_a_snapshot_of_the_cache_is_the_same_model(calm: Swarm, folder: Path, tmp_path: Path) -> None:
    """Published from another node, it is the model that is there already: nothing new lies anywhere."""
    repository = tmp_path / "models--a--tiny"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in folder.iterdir():
        shutil.move(file, repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    before = [stored(node.data_dir).shards for node in calm.nodes]
    done = calm.nodes[0].cli("publish", str(snapshot), "--name", "tiny")
    assert done["model_id"] == calm.nodes[0].cli("models", "tiny")["models"][0]["model_id"]
    assert [stored(node.data_dir).shards for node in calm.nodes] == before


def test_a_template_that_loops(calm: Swarm, tmp_path: Path) -> None:
    """Refused within its bound; the same worker answers the next question."""
    node = calm.nodes[0]
    path = tiny_llama(tmp_path / "loop", seed=1)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}"
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    model = node.cli("publish", str(path), "--name", "loop")["model_id"]
    question = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    try:
        node.post("/v1/chat/completions", {"model": "tiny", **question})
        worker = node.event("worker_started", 1.0)["pid"]
        status, _, body = node.http("POST", "/v1/chat/completions", {"model": model, **question}, timeout=15.0)
        assert (status, b"template" in body) == (400, True), body
        node.post("/v1/chat/completions", {"model": "tiny", **question}, timeout=10.0)
        assert Path(f"/proc/{worker}").exists()
    finally:
        for holder in calm.nodes:
            holder.cli("forget", model)
