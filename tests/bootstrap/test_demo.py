"""The demonstration's own parts; the story itself runs in the swarm tests."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from bootstrap import demo as story
from bootstrap.demo_nodes import DemoNode
from protocol.errors import NotRunning, Unavailable
from tests.support.wait import wait_until


@pytest.fixture
def demo(tmp_path: Path) -> story.Demo:
    return story.Demo(tmp_path, io.StringIO(), 6)


def _node(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> DemoNode:
    """A node whose program is `script` instead of mf-node."""
    program = folder / "program"
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(0o755)
    monkeypatch.setattr("bootstrap.demo_nodes.sys.executable", str(program))
    return DemoNode(1, folder / "node1")


def test_the_ready_line_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = '{"event": "ready", "peer_id": "p", "http": "http://127.0.0.1:1/", "ticket": "t"}'
    node = _node(tmp_path, monkeypatch, f"import time\nprint({line!r}, flush=True)\ntime.sleep(60)\n")
    node.launch()
    node.wait_ready()
    assert (node.peer_id, node.http, node.ticket) == ("p", "http://127.0.0.1:1", "t")
    node.ask_to_stop()
    assert node.wait_stopped() < 8
    assert node.pid == 0


def test_a_node_that_dies_shows_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = _node(tmp_path, monkeypatch, "import sys\nsys.exit('the port is taken')\n")
    node.launch()
    with pytest.raises(Unavailable, match="the port is taken"):
        node.wait_ready()
    node.kill()


def test_a_commands_error_keeps_its_class(tmp_path: Path) -> None:
    with pytest.raises(NotRunning):
        DemoNode(1, tmp_path / "node1").cli("status", timeout=30)


def test_everything_ends_when_the_story_breaks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[Any] = []

    def breaks(demo: story.Demo) -> None:
        node = _node(tmp_path, monkeypatch, "import time\ntime.sleep(60)\n")
        node.launch()
        demo.nodes.append(node)
        started.append(node._process)
        raise Unavailable("broken")

    monkeypatch.setattr(story, "_story", breaks)
    with pytest.raises(Unavailable, match="broken"):
        story.run_demo(leave=True)
    wait_until(lambda: started[0].poll() is not None, 5, "the node is gone")


def test_an_answer_is_told_with_its_route(demo: story.Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    node = DemoNode(7, demo.root / "node7")
    node.peer_id = "p7"
    demo.nodes.append(node)
    route = [{"peer": "p7", "first": 0, "end": 30}]
    events: list[dict[str, Any]] = [
        {"choices": [{"delta": {"content": "Pa"}}]},
        {"choices": [{"delta": {"content": "ris."}}]},
        {"choices": [], "usage": {"completion_tokens": 2}, "mf": {"kind": "here", "route": route}},
    ]
    monkeypatch.setattr(DemoNode, "post_stream", lambda *_: iter(events))
    told = story._ask(demo, node, "ask")
    assert (told["text"], told["route"], told["tokens"]) == ("Paris.", route, 2)
    assert isinstance(demo.out, io.StringIO)
    assert "node 7 [0–30)" in demo.out.getvalue()


def test_a_wrong_answer_is_a_failure(demo: story.Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DemoNode, "post_stream", lambda *_: iter([{"choices": [{"delta": {"content": "Berlin"}}]}]))
    with pytest.raises(Unavailable, match="Berlin"):
        story._ask(demo, DemoNode(7, demo.root / "node7"), "ask")
