"""Publishing and fetching that can't go on or is stopped: nothing half done is left in any directory, and the next try goes through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import TOP, CommandFailed, Node, Swarm, environment
from tests.support.synthetic import MIB, synthetic_llama
from tests.support.wait import wait_until
from tests.swarm import tools
from tests.swarm.data_dirs import Stored, stored

pytestmark = pytest.mark.swarm


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Takes some seconds to publish."""
    return synthetic_llama(tmp_path_factory.mktemp("big") / "big", 64 * MIB)


def everywhere(swarm: Swarm) -> list[Stored]:
    return [stored(node.data_dir) for node in swarm.nodes]


def interrupt(node: Node, arguments: tuple[str, ...], when: Any, how: Any = None, within: float = 10.0) -> tuple[int, dict[str, Any]]:
    """A command that gets Ctrl-C, or `how()` done to it, as soon as `when()`; its exit code and error."""
    command = [sys.executable, "-m", "node", "--data-dir", str(node.data_dir), "--json", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=TOP, env=environment(), preexec_fn=heed_ctrl_c, **pipes)
    try:
        wait_until(lambda: bool(when()) or process.poll() is not None, 20.0, "the moment to interrupt")
        how() if how is not None else process.send_signal(signal.SIGINT)
        said, told = process.communicate(timeout=within)
    finally:
        process.kill()
    assert "Traceback" not in told, told
    return process.returncode, json.loads(said).get("error", {})


def heed_ctrl_c() -> None:
    """A shell's job in the background ignores it, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_in_the_middle_and_again(calm: Swarm, big: Path, tmp_path: Path) -> None:
    """Publish: exit 130, nothing staged, the same command finishes it, one shard of a group per node. Then the same for fetch."""
    node = calm.nodes[0]
    before = everywhere(calm)
    publish = ("publish", str(big), "--name", "big")
    code, error = interrupt(node, publish, lambda: len(stored(calm.nodes[1].data_dir).shards) >= len(before[1].shards) + 2)
    assert (code, error["code"], "goes on" in error["hint"]) == (130, "cancelled", True)
    wait_until(lambda: not any(found.passing for found in everywhere(calm)), 5.0, "nothing staged, nothing half written")
    half = [len(found.shards) for found in everywhere(calm)]
    done = node.cli(*publish)
    assert (done["durable"], done["survives_losses"], done["peers"]) == (3 * done["groups"], 1, 3)
    after = everywhere(calm)
    assert [len(found.shards - old.shards) for found, old in zip(after, before, strict=True)] == [done["groups"]] * 3
    assert sum(half) > sum(len(old.shards) for old in before), "it wasn't in the middle"
    assert not any(found.passing for found in after)
    wait_until(lambda: one_shard_each(node.cli("holdings", done["model_id"])), 10.0, "one shard of a group per node, as all tell it")
    interrupted_fetch(calm, done["model_id"], tmp_path)
    forget_everywhere(calm, done["model_id"], before)


def test_the_transfer_process_killed_in_the_middle_costs_a_group(calm: Swarm, big: Path) -> None:
    """Whoever kills it (the system when memory is short, a fault of a library), the publish goes on."""
    node = calm.nodes[0]
    before = everywhere(calm)
    pid = tools.process_of(node, tools.TRANSFER)
    assert pid is not None
    middle = len(before[1].shards) + 1
    publish = ("publish", str(big), "--name", "outlived")
    code, error = interrupt(
        node, publish, lambda: len(stored(calm.nodes[1].data_dir).shards) >= middle, lambda: os.kill(pid, signal.SIGKILL), 60.0
    )
    node.event("transfer_ended", 5.0, status=-signal.SIGKILL)
    assert code == 0, error
    whole = everywhere(calm)
    done = node.cli(*publish)
    assert (done["durable"], done["peers"]) == (3 * done["groups"], 3)
    assert everywhere(calm) == whole, "it was whole before"
    assert not any(found.passing for found in everywhere(calm))
    forget_everywhere(calm, done["model_id"], before)


def test_files_that_change_meanwhile(calm: Swarm, tmp_path: Path) -> None:
    """Nobody could finish what was begun of them: it is taken back."""
    path = synthetic_llama(tmp_path / "moving", 64 * MIB, seed=3)
    weights, before = path / "model.safetensors", everywhere(calm)

    def change() -> None:
        with weights.open("r+b") as file:
            file.seek(-64, 2)
            file.write(bytes(64))

    begun = len(before[1].shards) + 2
    code, error = interrupt(calm.nodes[0], ("publish", str(path)), lambda: len(stored(calm.nodes[1].data_dir).shards) >= begun, change)
    assert (code, "changed while" in error["message"]) == (2, True), error
    wait_until(lambda: everywhere(calm) == before, 5.0, "nothing left behind")


def one_shard_each(holders: dict[str, Any]) -> bool:
    told = [[peer for who in group["shards"].values() for peer in who] for group in holders["groups"]]
    return all(len(peers) == len(set(peers)) == 3 for peers in told)


def interrupted_fetch(swarm: Swarm, model: str, tmp_path: Path) -> None:
    """The others hang, so that it can't be over before it is stopped."""
    node, target = swarm.nodes[2], tmp_path / "target"
    for other in swarm.nodes[:2]:
        other.freeze()
    try:
        code, error = interrupt(node, ("fetch", model, str(target)), lambda: any(tmp_path.rglob("*")))
    finally:
        for other in swarm.nodes[:2]:
            other.thaw()
    assert (code, error["code"]) == (130, "cancelled")
    wait_until(lambda: not list(tmp_path.iterdir()), 5.0, "nothing left where it was fetched to")
    wait_until(lambda: not stored(node.data_dir).passing, 5.0, "nothing left in the data directory")


def forget_everywhere(swarm: Swarm, model: str, before: list[Stored]) -> None:
    """What lies here goes from disk and holdings, and only here; there is nothing to forget twice."""
    for node, old in zip(swarm.nodes, before, strict=True):
        assert node.cli("forget", model)["freed"] > 0
        assert model not in {line["model_id"] for line in node.cli("holdings")["holdings"]}
        assert stored(node.data_dir) == old
    with pytest.raises(CommandFailed) as caught:
        swarm.nodes[0].cli("forget", model)
    assert (caught.value.code, caught.value.error["code"]) == (3, "not_found")


def test_fetch_into_a_folder_with_something_in_it(calm: Swarm, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CommandFailed) as caught:
        calm.nodes[0].cli("fetch", "tiny", str(tmp_path))
    assert caught.value.code in (2, 4)
    assert str(tmp_path) in caught.value.error["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(CommandFailed) as caught:
        calm.nodes[0].cli("fetch", "tiny", "/proc/nowhere/x")
    assert (caught.value.code, "/proc/nowhere" in caught.value.error["message"]) == (2, True)


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """Three nodes that lend 6 MB; the second, which says 1 GB, has a disk of 4 MiB."""
    folder = tmp_path_factory.mktemp("cramped")
    disk = folder / "node1"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    try:
        with Swarm(folder, 1, "--lend", "both", "--storage", "6MB") as swarm:
            ticket = swarm.nodes[0].ticket
            swarm.add("--join", ticket, "--storage", "1GB")
            swarm.add("--join", ticket)
            swarm.wait_met()
            yield swarm
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def refusals(swarm: Swarm, path: Path) -> dict[str, str]:
    """Who refused a publish that must fail for want of room, and why; afterwards every disk is as before."""
    before = everywhere(swarm)
    with pytest.raises(CommandFailed) as caught:
        swarm.nodes[0].cli("publish", str(path))
    assert (caught.value.code, caught.value.error["code"]) == (7, "storage_full")
    wait_until(lambda: everywhere(swarm) == before, 5.0, "nothing left behind")
    assert all(node.cli("holdings")["holdings"] == [] for node in swarm.nodes)
    return dict(caught.value.error["details"]["refusals"])


def test_no_room(cramped: Swarm, tmp_path: Path, model_folder: Path) -> None:
    """A disk too full, then quotas too small; a model that fits is published afterwards, and stays when its publisher fails to do more.

    What is dealt to each of the first is within their quotas: others are still asked while the full disk says no.
    """
    full = refusals(cramped, synthetic_llama(tmp_path / "for-the-disk", 10 * MIB))
    assert set(full) == {cramped.nodes[1].peer_id}
    assert "disk" in str(full), full
    over = refusals(cramped, synthetic_llama(tmp_path / "for-none", 48 * MIB))
    assert set(over) <= {node.peer_id for node in cramped.nodes}
    assert all("fit" in reason for reason in over.values()), over
    done = cramped.nodes[0].cli("publish", str(model_folder), "--name", "tiny")
    kept = everywhere(cramped)
    with pytest.raises(CommandFailed) as caught:
        cramped.nodes[0].cli("publish", str(model_folder), "--name", "tiny", "--k", "2", "--n", "9")
    assert (caught.value.code, "needs 6 nodes" in caught.value.error["message"]) == (7, True)
    assert [found.shards for found in everywhere(cramped)] == [found.shards for found in kept]
    assert done["durable"] == 3 * done["groups"]
    assert all(node.http("GET", "/health")[0] == 200 for node in cramped.nodes)
