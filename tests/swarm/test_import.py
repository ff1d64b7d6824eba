"""GGUF files through real processes: kept bit for bit and not run, dequantised and run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootstrap.demo_model import packaged_weights
from tests.support.gguf_files import tiny_gguf
from tests.support.processes import CommandFailed, Swarm
from tests.support.wait import wait_until
from tests.swarm import tools

pytestmark = pytest.mark.swarm


def test_a_gguf_file_kept_and_the_same_dequantised(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "tiny.gguf")
    with Swarm(tmp_path, 3, "--lend", "both") as swarm:
        publisher, reader = swarm.nodes[0], swarm.nodes[2]
        kept = publisher.cli("publish", str(file), "--name", "kept", "--gguf", "keep")
        run = publisher.cli("publish", str(file), "--name", "dense", timeout=120.0)
        assert kept["model_id"] != run["model_id"]
        wait_until(lambda: len(reader.cli("models")["models"]) == 2, 10.0, "both models to be known")
        reader.cli("fetch", "kept", str(tmp_path / "back"))
        assert (tmp_path / "back" / "tiny.gguf").read_bytes() == file.read_bytes()
        for command in (("chat", "kept", "hello"), ("explain", "kept")):
            with pytest.raises(CommandFailed) as caught:
                reader.cli(*command)
            assert (caught.value.code, "kept as it is (Q8_0)" in caught.value.error["message"]) == (2, True)
        reply = reader.cli("chat", "dense", "hello", "--max-tokens", "4", timeout=120.0)
        assert reply["completion_tokens"] >= 1
        group = reader.cli("fetch", "kept", str(tmp_path / "part"), "--group", "layer.1")
        assert (tmp_path / "part" / "layer.1").stat().st_size == group["bytes"]
        one = reader.cli("fetch", "dense", str(tmp_path / "one"), "--file", "config.json")
        assert (one["files"], [path.name for path in (tmp_path / "one").iterdir()]) == (1, ["config.json"])
        (tmp_path / "bad.gguf").write_bytes(file.read_bytes()[:-64])
        with pytest.raises(CommandFailed) as caught:
            publisher.cli("publish", str(tmp_path / "bad.gguf"))
        assert (caught.value.code, "end beyond the file" in caught.value.error["message"]) == (2, True)


def test_a_real_model_is_kept_bit_for_bit(tmp_path: Path) -> None:
    file = packaged_weights()
    with Swarm(tmp_path, 3) as swarm:
        told = swarm.nodes[0].cli("publish", str(file), "--gguf", "keep", timeout=180.0)
        done = swarm.nodes[2].cli("fetch", told["model_id"], str(tmp_path / "back"), timeout=180.0)
        tools.report("real GGUF", f"{told['bytes']} bytes in {told['groups']} groups, {told['seconds']} s, fetched in {done['seconds']} s")
        assert told["groups"] == 33
        assert tools.digests(tmp_path / "back") == {file.name: tools.digests(file.parent)[file.name]}
