"""Versions of a model over real processes: what is equal lies there once, belongs to each, and goes with the last."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.processes import CommandFailed, Node, Swarm
from tests.support.synthetic import MIB, synthetic_llama
from tests.support.wait import wait_until
from tests.swarm import tools

pytestmark = pytest.mark.swarm
N = 4


def with_other_layer(source: Path, target: Path, layer: int) -> Path:
    """A copy whose tensors of one layer have other bytes."""
    shutil.copytree(source, target)
    with (target / "model.safetensors").open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        for name, entry in json.loads(file.read(size)).items():
            if f".layers.{layer}." in name:
                begin, end = entry["data_offsets"]
                file.seek(8 + size + begin)
                data = bytes(byte ^ 1 for byte in file.read(end - begin))
                file.seek(8 + size + begin)
                file.write(data)
    return target


def stored_bytes(swarm: Swarm) -> int:
    return sum(path.stat().st_size for node in swarm.nodes for path in (node.data_dir / "store" / "shards").iterdir())


def whole(node: Node, model: str) -> bool:
    """Whether this node sees all N shards of every group announced for the model."""
    groups = node.cli("holdings", model)["groups"]
    return bool(groups) and all(len(group["shards"]) == N for group in groups)


def fetched(node: Node, model: str, folder: Path, target: Path) -> None:
    node.cli("fetch", model, str(target))
    assert tools.digests(target) == tools.digests(folder)


def test_versions_share_what_is_equal(tmp_path: Path) -> None:
    first = synthetic_llama(tmp_path / "first", 24 * MIB)
    second = with_other_layer(first, tmp_path / "second", 3)
    third = with_other_layer(first, tmp_path / "third", 5)
    with Swarm(tmp_path, N) as swarm:
        one, other, reader = swarm.nodes[0], swarm.nodes[1], swarm.nodes[3]
        done = [one.cli("publish", str(first), "--name", "m")]
        sizes = [stored_bytes(swarm)]
        wait_until(lambda: whole(one, done[0]["model_id"]), 15.0, "the first version to be announced")
        done.append(one.cli("publish", str(second), "--name", "m", "--version", "2"))
        sizes.append(stored_bytes(swarm))
        wait_until(lambda: whole(other, "m@1") and whole(other, "m@2"), 15.0, "both to be announced")
        done.append(other.cli("publish", str(third), "--name", "tuned"))
        sizes.append(stored_bytes(swarm))
        layer = done[1]["stored_bytes"] - done[1]["saved_bytes"]
        for number, (told, size) in enumerate(zip(done, sizes, strict=True), 1):
            new = size - (sizes[number - 2] if number > 1 else 0)
            tools.report(
                f"publish {number}", f"{told['stored_bytes']} bytes of shards, {new} of them new on the disks, {told['seconds']} s"
            )
            assert told["durable"] == told["shards"] == N * told["groups"]
        assert layer < done[0]["stored_bytes"] / 10
        for earlier, size in pairwise(sizes):
            assert layer <= size - earlier < 1.02 * layer + N * 4096
        saved = reader.cli("status")["space"]["saved"]
        tools.report("saved", f"{saved} bytes at one of {N} nodes")
        assert saved > 1.8 * done[0]["stored_bytes"] / N * 0.9
        for told, folder in zip(done, (first, second, third), strict=True):
            wait_until(lambda told=told: whole(reader, told["model_id"]), 15.0, "all of it to be announced")
            fetched(reader, told["model_id"], folder, tmp_path / f"back-{told['model_id'][-6:]}")
        for node in swarm.nodes:
            node.cli("forget", done[0]["model_id"])
        with pytest.raises(CommandFailed):
            one.cli("fetch", done[0]["model_id"], str(tmp_path / "gone"))
        assert stored_bytes(swarm) == sizes[2], "each group of the first is one of the second or of the third"
        fetched(reader, done[1]["model_id"], second, tmp_path / "second again")
        for node in swarm.nodes:
            node.cli("forget", done[1]["model_id"])
        assert layer <= sizes[2] - stored_bytes(swarm) < 2.1 * layer
        fetched(reader, done[2]["model_id"], third, tmp_path / "third again")
        for node in swarm.nodes:
            node.cli("forget", done[2]["model_id"])
        assert stored_bytes(swarm) == 0
