"""Folders on disk: what is published, what is refused, and that the same files give the same id."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from node import model_manifest
from node.model_folder import scan
from node.model_manifest import build_manifest
from protocol.errors import BadInput, Cancelled
from protocol.grouping import group_id
from protocol.ids import digest
from protocol.manifest import model_id, parse_manifest
from tests.support.synthetic import synthetic_llama, tiny_llama, write_safetensors


def ignore(done: int, total: int) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "model")


def refused(path: Path, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        build_manifest(scan(path), ignore)


def test_same_files_same_id_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    manifest, data = build_manifest(scan(folder), ignore)
    shutil.copytree(folder, tmp_path / "copy")
    assert model_id(build_manifest(scan(tmp_path / "copy"), ignore)[1]) == model_id(data)
    assert parse_manifest(data) == manifest
    (folder / "README.md").write_text("one byte more")
    assert model_id(build_manifest(scan(folder), ignore)[1]) != model_id(data)


def test_shards_of_a_checkpoint_and_progress(tmp_path: Path) -> None:
    path = synthetic_llama(tmp_path / "m", 16 * 1024 * 1024, files=3)
    seen: list[tuple[int, int]] = []
    manifest, _ = build_manifest(scan(path), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (manifest.size(), manifest.size())
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {tensor.file for tensor in manifest.tensors} == {2, 3, 4}
    for entry in manifest.files:
        assert entry.digest == digest((path / entry.name).read_bytes())


def test_a_large_tensor_is_cut_and_its_cuts_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With groups of 64 KiB: rows of the embedding lie in several groups, each with an id of its own bytes."""
    from protocol import grouping, limits, manifest_check

    cut_at = 64 * 1024
    monkeypatch.setattr(limits, "MAX_GROUP", cut_at)
    monkeypatch.setattr(model_manifest, "row_cuts", lambda shape, length: grouping.row_cuts(shape, length, cut_at))
    for module in (model_manifest, manifest_check):
        monkeypatch.setattr(module, "group_model", lambda lengths, tensors, rule: grouping.group_model(lengths, tensors, cut_at, rule))
    path = tmp_path / "m"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}' + " " * 2 * cut_at)
    write_safetensors(path / "model.safetensors", {"embed.weight": (1000, 64)}, 1)
    manifest, _ = build_manifest(scan(path), ignore)
    tensor = manifest.tensors[0]
    assert [group.name for group in manifest.groups] == ["embed/0", "embed/1", "files/0", "files/1", "files/2"]
    data = (path / "model.safetensors").read_bytes()
    first = data[tensor.offset : tensor.offset + cut_at]
    assert manifest.groups[0].id == group_id([("BF16", (512, 64), digest(first))])
    files = ((path / "config.json").read_bytes() + data[: tensor.offset])[: 2 * cut_at]
    assert manifest.groups[3].id == group_id([("U8", (cut_at,), digest(files[cut_at:]))])


def test_a_snapshot_of_the_cache_is_followed_and_a_way_out_is_not(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in folder.iterdir():
        shutil.copy(file, repository / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert build_manifest(scan(snapshot), ignore)[1] == build_manifest(scan(folder), ignore)[1]
    secret = tmp_path / "hub" / "secret.txt"
    secret.write_text("secret")
    (snapshot / "notes.txt").symlink_to(secret)
    refused(snapshot, "notes.txt: a link out of")


def test_links_are_refused_outside_the_cache(folder: Path) -> None:
    (folder / "copy.json").symlink_to(folder / "config.json")
    refused(folder, "copy.json: a link out of")
    (folder / "copy.json").unlink()
    (folder / "loop.json").symlink_to(folder / "loop.json")
    refused(folder, "loop.json: a link that leads nowhere")


def test_pickled_weights(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    found = scan(folder)
    assert [name.split(":")[0] for name in found.left_out] == ["pytorch_model.bin"]
    assert "pytorch_model.bin" not in {entry.name for entry in found.files}
    (folder / "model.safetensors").unlink()
    refused(folder, "only pickled weights .*run code")


def test_what_is_not_a_model(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nowhere", "no such path")
    refused(folder / "config.json", "not a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no safetensors")
    (folder / "config.json").unlink()
    refused(folder, "no config.json")


def test_hidden_files_are_skipped(folder: Path) -> None:
    before = build_manifest(scan(folder), ignore)[1]
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("x")
    (folder / ".env").write_text("SECRET=1")
    assert build_manifest(scan(folder), ignore)[1] == before


def test_devices_fifos_and_sockets_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "pipe")
    refused(folder, "pipe: not a regular file")
    (folder / "pipe").unlink()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        refused(folder, "sock: not a regular file")


@pytest.mark.parametrize("name", ["new\nline", "back\\slash", "co:lon"])
def test_unsafe_names_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("x")
    refused(folder, "refused")


def test_the_error_names_the_file_and_the_rule(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + data[8:])
    refused(folder, "model.safetensors: .*header announces")
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(folder, "model.safetensors: .*outside the file")


def test_a_million_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1_000_000}))
    refused(folder, "num_hidden_layers is 1000000")


def test_index_that_lies(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m", files=2)
    index = path / "model.safetensors.index.json"
    for name, match in (("absent.safetensors", "not there"), ("../x.safetensors", "not a safetensors file beside")):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        refused(path, match)
    index.write_text("[")
    refused(path, "not valid JSON")


def test_an_index_whose_tensors_lie_elsewhere(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m", files=2)
    index = path / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    name, *_ = listed
    for changed in (
        listed | {"more.weight": listed[name]},
        listed | {name: next(file for file in listed.values() if file != listed[name])},
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        refused(path, r"index\.json: lists tensor .* which doesn't hold it")


def snapshot_of(folder: Path, hub: Path) -> Path:
    """As the Hugging Face library keeps it: every file a link into blobs/, named by a hash."""
    repository = hub / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in folder.iterdir():
        blob = digest(file.read_bytes()).hex()
        shutil.copy(file, repository / "blobs" / blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob)
    return snapshot


def test_a_sharded_snapshot_is_complete(tmp_path: Path) -> None:
    """Index, shards and all by links: the same model as the folder it was made of, and each tensor in its place."""
    folder = tiny_llama(tmp_path / "m", files=3)
    snapshot = snapshot_of(folder, tmp_path / "hub")
    manifest, data = build_manifest(scan(snapshot), ignore)
    assert data == build_manifest(scan(folder), ignore)[1]
    listed = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert {tensor.name: manifest.files[tensor.file].name for tensor in manifest.tensors} == listed
    assert [group.name for group in manifest.groups] == ["embed", *(f"layer.{n}" for n in range(4)), "head", "files/0"]


def test_what_is_wrong_with_a_snapshot(tmp_path: Path) -> None:
    snapshot = snapshot_of(tiny_llama(tmp_path / "m", files=2), tmp_path / "hub")
    part = snapshot / "model-00002-of-00002.safetensors"
    target = os.readlink(part)
    part.unlink()
    refused(snapshot, "index.json: lists 'model-00002-of-00002.safetensors', which is not there")
    part.symlink_to(Path("../../blobs") / "gone")
    refused(snapshot, "model-00002-of-00002.safetensors: a link that leads nowhere")
    part.unlink()
    part.symlink_to(target)
    (snapshot / "more").symlink_to(Path("../../blobs"))
    refused(snapshot, "more: not a regular file")
    (snapshot / "more").unlink()
    other = tmp_path / "hub" / "models--c--d" / "blobs"
    other.mkdir(parents=True)
    (other / "x").write_text("of another model")
    (snapshot / "notes.txt").symlink_to(other / "x")
    refused(snapshot, "notes.txt: a link out of")


def test_a_tensor_in_two_files(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    refused(folder, "stands in two files")


def test_a_file_that_changes_meanwhile(folder: Path) -> None:
    found = scan(folder)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(BadInput, match=r"model.safetensors: .*changed while"):
        build_manifest(found, ignore)


def test_a_file_that_changes_during_the_pass(folder: Path) -> None:
    found = scan(folder)

    def touch(done: int, total: int) -> None:
        os.utime(folder / "tokenizer.json", ns=(1, 1))

    with pytest.raises(BadInput, match=r"tokenizer\.json: changed while"):
        build_manifest(found, touch)


def test_progress_may_stop_it(folder: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise Cancelled("stopped")

    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Cancelled):
        build_manifest(scan(folder), stop)
    assert len(os.listdir("/proc/self/fd")) == before
