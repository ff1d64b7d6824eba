"""A fetch whose node is killed in the middle, and one that ran out of holders: the next goes on where it was."""

from __future__ import annotations

import filecmp
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.restore import MARKS, WORK
from tests.support.processes import TOP, CommandFailed, Node, Swarm, environment
from tests.support.synthetic import synthetic_llama
from tests.support.wait import wait_until
from tests.swarm import tools

pytestmark = pytest.mark.swarm

MIB = 1 << 20
SIZE = 192 * MIB
K, N, AHEAD, WINDOWS = 2, 4, 3, 5
"""Groups under way at once; windows of a MiB a connection may have that no group has yet."""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Swarm, Path, str]]:
    folder = synthetic_llama(tmp_path_factory.mktemp("model") / "big", SIZE, hidden=512)
    with Swarm(tmp_path_factory.mktemp("nodes"), N, "--lend", "both", "--storage", "2GB") as swarm:
        done = swarm.nodes[0].cli("publish", str(folder), "--k", str(K), "--n", str(N), "--compression", "raw")
        yield swarm, folder, done["model_id"]


def asker(swarm: Swarm, model: str) -> Node:
    node = swarm.add("--join", swarm.nodes[0].ticket)
    wait_until(lambda: any(e["model_id"] == model and e["holders"] >= N for e in node.cli("models")["models"]), 20, "it knows the holders")
    return node


def begun(node: Node, model: str, target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "node", "--data-dir", str(node.data_dir), "--json", "fetch", model, str(target)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=TOP)


def marked(target: Path) -> int:
    """Bytes that the marks say are in place."""
    try:
        data = (target / WORK / MARKS).read_bytes()[40:]
    except OSError:
        return 0
    return sum(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8))


def assert_whole(folder: Path, target: Path) -> None:
    assert sorted(path.name for path in target.iterdir()) == sorted(path.name for path in folder.iterdir())
    assert all(filecmp.cmp(path, target / path.name, shallow=False) for path in folder.iterdir())


def judge(found: dict[str, Any], least: int) -> None:
    tools.report("a fetch taken up", f"{found['resumed']} of {found['bytes']} bytes in place, {found['received']} received")
    assert found["resumed"] >= least
    assert found["received"] <= 1.01 * (found["bytes"] - found["resumed"]) + AHEAD * K * MIB


@pytest.mark.parametrize("kill", ["the node", pytest.param("the transfer process", marks=pytest.mark.nightly)])
def test_killed_in_the_middle(published: tuple[Swarm, Path, str], tmp_path: Path, kill: str) -> None:
    swarm, folder, model = published
    node, target = asker(swarm, model), tmp_path / "out"
    most = random.Random(kill).uniform(0.2, 0.6) * SIZE
    command = begun(node, model, target)
    wait_until(lambda: marked(target) > most or command.poll() is not None, 30, "the fetch is in the middle")
    assert command.poll() is None, "it was over before"
    if kill == "the node":
        node.kill()
        command.communicate(timeout=20)
        assert [path.name for path in target.iterdir()] == [WORK], "half a file under its name"
        before = marked(target)
        node.start()
        wait_until(lambda: any(e["model_id"] == model for e in node.cli("models")["models"]), 20, "it knows the model again")
        judge(node.cli("fetch", model, str(target)), before)
    else:
        pid = tools.process_of(node, tools.TRANSFER)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        out, errors = command.communicate(timeout=60)
        if command.returncode == 0:  # the verb goes on by itself once the process is back
            tools.report("after its transfer process was killed", out[-300:])
        else:
            assert "what has come is kept" in out + errors
            judge(node.cli("fetch", model, str(target)), 1)
    assert_whole(folder, target)
    node.kill()


def test_holders_that_go_away_cost_what_is_missing_alone(published: tuple[Swarm, Path, str], tmp_path: Path) -> None:
    """All but k - 1 holders die in the middle: said so, kept, and gone on with once they are back."""
    swarm, folder, model = published
    node, target = asker(swarm, model), tmp_path / "out"
    command = begun(node, model, target)
    wait_until(lambda: marked(target) > 0.25 * SIZE or command.poll() is not None, 30, "the fetch is in the middle")
    assert command.poll() is None, "it was over before"
    dead = swarm.nodes[1:N]
    for holder in dead:
        holder.kill()
    out, _ = command.communicate(timeout=60)
    assert command.returncode != 0
    assert "what has come is kept" in out
    assert [path.name for path in target.iterdir()] == [WORK]
    for holder in dead:
        holder.start()

    def again() -> bool:
        try:
            found.append(node.cli("fetch", model, str(target)))
        except CommandFailed:
            return False
        return True

    found: list[dict[str, Any]] = []
    wait_until(again, 60, "the holders are back")
    judge(found[0], SIZE // 4)
    assert_whole(folder, target)
