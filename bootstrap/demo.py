"""`mf-node demo`: a swarm on this machine stores a real model, loses its publisher, and answers all the same.

Everything goes through the ordinary program: processes of `mf-node run`, its commands, its HTTP endpoint.
This module knows the story and nothing of the node's inside.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from bootstrap.demo_nodes import DemoNode
from protocol.errors import Cancelled, MfError, Unavailable

QUESTION = "Name the capital of France."
"""Asked so, every greedy token leads the next best by 1.0 and more in logits (measured in fp32).

"What is the capital …?" leaves 0.1 between "The" and "L'Étoile", which rounding at a stage's boundary (bf16) may turn about.
"""
NAME = "smollm2-135m-instruct"
SMALL_MEMORY = "120MB"
PUBLISH_WITHIN, ANSWER_WITHIN, MEET_WITHIN = 240.0, 180.0, 60.0
_MAY_PASS = {404, 429, 503}


@dataclass
class Demo:
    """The story's state: who lives, what was published, what was seen."""

    root: Path
    out: TextIO
    size: int
    nodes: list[DemoNode] = field(default_factory=list)
    model: str = ""
    model_id: str = ""
    told: dict[str, Any] = field(default_factory=dict)
    _step: int = 0

    def say(self, text: str = "") -> None:
        print(text, file=self.out, flush=True)

    def step(self, text: str) -> None:
        self._step += 1
        self.say(f"\n{self._style(1)}{self._step}. {text}{self._style(0)}")

    def done(self, text: str) -> None:
        self.say(f"   {self._style(32)}✓{self._style(0)} {text}")

    def _style(self, code: int) -> str:
        return f"\x1b[{code}m" if self.out.isatty() else ""

    def living(self) -> list[DemoNode]:
        return [node for node in self.nodes if node.pid]


def run_demo(nodes: int = 6, leave: bool = False, keep: bool = False, as_json: bool = False) -> int:
    """Tells the story; 0 when all of it came true. Always ends its processes, also at Ctrl-C and SIGTERM."""
    root = Path(tempfile.mkdtemp(prefix="mf-demo-"))
    demo = Demo(root, sys.stderr if as_json else sys.stdout, nodes)
    before = signal.signal(signal.SIGTERM, _interrupt)
    began = time.monotonic()
    finished = False
    try:
        _story(demo)
        demo.told["seconds"] = round(time.monotonic() - began, 1)
        demo.say(f"\nAll of it in {demo.told['seconds']:.0f} s.")
        finished = True
        if as_json:
            print(json.dumps(demo.told), flush=True)
        if not leave:
            _stay(demo)
    except KeyboardInterrupt:
        if not finished:
            raise Cancelled("the demonstration was stopped by Ctrl-C") from None
    finally:
        _end(demo)
        signal.signal(signal.SIGTERM, before)
        if keep or not finished:
            demo.say(f"Directories and logs: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _story(demo: Demo) -> None:
    folder = _make_model(demo)
    _start_swarm(demo)
    published = time.monotonic()
    _publish(demo, folder)
    _show_holders(demo)
    _kill_two(demo)
    newcomer = _newcomer(demo)
    first = _ask(demo, newcomer, f"Ask {newcomer.name}, which holds nothing: {QUESTION}")
    demo.told["publish_to_answer_seconds"] = round(time.monotonic() - published, 1)
    demo.done(f"publish to first answer: {demo.told['publish_to_answer_seconds']:.0f} s")
    _restart_small(demo)
    second = _ask(demo, newcomer, f"Ask again, now that {SMALL_MEMORY} a node can't hold the model")
    if len(second["route"]) < 3:
        raise newcomer.failure(f"the model went through {len(second['route'])} stages, at least 3 were due")
    demo.done(f"{len(second['route'])} stages on {len({stage.get('peer') for stage in second['route']})} nodes, shown by the route")
    demo.told |= {"whole": first, "pipeline": second}


def _make_model(demo: Demo) -> Path:
    from bootstrap.demo_model import demo_model

    demo.step("The model: SmolLM2-135M-Instruct (made once, about half a minute)")
    began = time.monotonic()
    folder: Path = demo_model()
    size = sum(path.stat().st_size for path in folder.iterdir())
    demo.done(f"{folder} · {size / 1e6:.0f} MB · {time.monotonic() - began:.1f} s")
    return folder


def _start_swarm(demo: Demo) -> None:
    demo.step(f"{demo.size} nodes, one private swarm by ticket")
    began = time.monotonic()
    first = _launch(demo, DemoNode(1, demo.root / "node1"))
    first.wait_ready()
    others = [_launch(demo, DemoNode(number, demo.root / f"node{number}"), "--join", first.ticket) for number in range(2, demo.size + 1)]
    for node in others:
        node.wait_ready()
    _meet(demo, demo.nodes)
    for node in demo.nodes:
        demo.say(f"     {node.name}  {node.peer_id}  {node.http}")
    demo.done(f"all know each other · {time.monotonic() - began:.1f} s")


def _launch(demo: Demo, node: DemoNode, *options: str) -> DemoNode:
    if node not in demo.nodes:
        demo.nodes.append(node)
    node.launch(*options)
    return node


def _meet(demo: Demo, nodes: list[DemoNode]) -> None:
    """Waits until each of `nodes` sees every other one alive."""
    wanted = {node.peer_id for node in nodes}
    for node in nodes:

        def sees(node: DemoNode = node) -> bool:
            alive = {peer["peer_id"] for peer in node.cli("status")["peers"] if peer["alive"]}
            return wanted - {node.peer_id} <= alive

        _wait(sees, MEET_WITHIN, node, "to see all the others alive")


def _wait(condition: Callable[[], bool], within: float, node: DemoNode, what: str) -> None:
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            raise node.failure(f"{node.name} took over {within:.0f} s {what}")
        time.sleep(0.3)


def _publish(demo: Demo, folder: Path) -> None:
    publisher = demo.nodes[0]
    demo.step(f"Publish from {publisher.name}")
    done = publisher.cli("publish", str(folder), "--name", NAME, timeout=PUBLISH_WITHIN, on_progress=lambda line: demo.say(f"     {line}"))
    demo.model, demo.model_id = done["name"], done["model_id"]
    demo.told["published"] = done
    demo.done(
        f"{done['name']} · {done['bytes'] / 1e6:.0f} MB in {done['groups']} groups · "
        f"{done['durable']} of {done['shards']} shards durable · {done['seconds']:.1f} s"
    )
    demo.say(f"     {done['model_id']}")


def _show_holders(demo: Demo) -> None:
    demo.step("Who holds what")
    node = demo.nodes[1]
    enough: dict[str, Any] = {}

    def safe() -> bool:
        lines = [line for line in node.cli("status")["models"] if line["model_id"] == demo.model_id]
        enough.update(lines[0] if lines else {})
        wanted = max(2, int(demo.told["published"]["survives_losses"]))
        return int(enough.get("survives_losses") or 0) >= wanted

    _wait(safe, MEET_WITHIN, node, "to see the model as durable as its publisher said")
    held = node.cli("holdings", demo.model_id)
    table = {group["group"]: group["shards"] for group in held["groups"]}
    names = {each.peer_id: each.number for each in demo.nodes}
    shown = [*list(table)[:2], "…", *list(table)[-1:]] if len(table) > 4 else list(table)
    for group in shown:
        shards = table.get(group, {})
        line = "  ".join(f"shard {j} on node {'+'.join(str(names.get(p, '?')) for p in who)}" for j, who in shards.items())
        demo.say(f"     {group:<10} {line}".rstrip())
    most = max((count for shards in table.values() for count in Counter(p for who in shards.values() for p in who).values()), default=0)
    if most > 1:
        raise node.failure("a node holds two shards of one group")
    coding = {(group["k"], group["n"]) for group in held["groups"]}
    demo.done(f"one shard of a group per node · {', '.join(f'k = {k}, n = {n}' for k, n in sorted(coding))}")
    demo.done(f"survives the loss of any {enough['survives_losses']} nodes")
    demo.told["survives_losses"] = enough["survives_losses"]


def _kill_two(demo: Demo) -> None:
    victims = [demo.nodes[0], demo.nodes[3]]
    demo.step(f"Kill two of them: {victims[0].name}, the publisher, and {victims[1].name}")
    for node in victims:
        pid = node.pid
        node.kill()
        demo.done(f"{node.name} (process {pid}) is gone")


def _newcomer(demo: Demo) -> DemoNode:
    survivor = demo.living()[0]
    number = demo.size + 1
    demo.step(f"Node {number} joins by a ticket of {survivor.name}")
    node = _launch(demo, DemoNode(number, demo.root / f"node{number}"), "--join", survivor.cli("ticket")["ticket"])
    node.wait_ready()
    held = node.cli("holdings")["holdings"]
    if held:
        raise node.failure(f"{node.name} was to hold nothing, and holds {len(held)} models")
    demo.done(f"{node.name} holds nothing · {node.http}")
    return node


def _ask(demo: Demo, node: DemoNode, title: str) -> dict[str, Any]:
    demo.step(title)
    end = time.monotonic() + ANSWER_WITHIN
    while True:
        try:
            return _answer(demo, node)
        except MfError as error:
            # The swarm may still be learning who is gone; what is wrong for good ends here.
            status = error.details.get("status")
            if status not in _MAY_PASS:
                raise
            if time.monotonic() > end:
                raise node.failure(error.message) from error
            time.sleep(1.0)


def _answer(demo: Demo, node: DemoNode) -> dict[str, Any]:
    body = {
        "model": demo.model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 48,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.monotonic()
    first = last = 0.0
    text = ""
    usage: dict[str, Any] = {}
    trace: dict[str, Any] = {}
    for event in node.post_stream("/v1/chat/completions", body, ANSWER_WITHIN):
        if "error" in event:
            raise MfError(str(event["error"]), details={"status": 503})
        usage, trace = event.get("usage") or usage, event.get("mf") or trace
        for choice in event.get("choices", []):
            piece = (choice.get("delta") or {}).get("content") or ""
            if piece:
                first = first or time.monotonic()
                last = time.monotonic()
                demo.out.write(piece if text else f"     « {piece}")
                demo.out.flush()
                text += piece
    demo.say(" »")
    return _told(demo, text, usage, trace, (began, first, last))


def _told(demo: Demo, text: str, usage: dict[str, Any], trace: dict[str, Any], times: tuple[float, float, float]) -> dict[str, Any]:
    began, first, last = times
    route = trace.get("route") or []
    tokens = int(usage.get("completion_tokens") or 0)
    speed = (tokens - 1) / (last - first) if tokens > 1 and last > first else None
    names = {node.peer_id: node.name for node in demo.nodes}
    stages = " → ".join(f"{names.get(s.get('peer', ''), 'here')} [{s.get('first')}–{s.get('end')})" for s in route)
    demo.say(f"     route: {trace.get('kind', '?')}  {stages}")
    rate = f"{speed:.1f} tokens/s" if speed else "one token"
    demo.say(f"     first token after {first - began:.2f} s · {tokens} tokens · {rate}")
    if "paris" not in text.lower():
        raise Unavailable(f"the answer was wrong: {text!r}")
    demo.done("right")
    seconds = round(first - began, 3)
    return {"text": text, "route": route, "first_token_seconds": seconds, "tokens": tokens, "tokens_per_second": speed and round(speed, 1)}


def _restart_small(demo: Demo) -> None:
    demo.step(f"Restart the living with --max-memory {SMALL_MEMORY}")
    living = demo.living()
    for node in living:
        node.ask_to_stop()
    slowest = max(node.wait_stopped() for node in living)
    demo.done(f"all stopped within {slowest:.1f} s")
    first, *others = living
    first.launch("--max-memory", SMALL_MEMORY)
    first.wait_ready()
    for node in others:
        node.launch("--max-memory", SMALL_MEMORY, "--join", first.ticket)
    for node in others:
        node.wait_ready()
    _meet(demo, living)
    demo.done(f"{len(living)} nodes are back, each with what it held")


def _stay(demo: Demo) -> None:
    demo.say("\nThe swarm stays up; Ctrl-C ends it. Try:")
    for node in demo.living():
        demo.say(f"     {node.http}/   mf-node --data-dir {node.folder} status")
    threading.Event().wait()


def _end(demo: Demo) -> None:
    """Every process, whatever happened; a second Ctrl-C doesn't leave one behind."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for node in demo.nodes:
            node.ask_to_stop()
        for node in demo.nodes:
            node.wait_stopped()
    finally:
        signal.signal(signal.SIGINT, before)
