"""What the tests of whole swarms look at from outside: processes, metrics, files, streams and the route of a reply."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from node.cli.owner_client import call
from node.model_cost import StageCost
from node.model_folder import scan
from node.model_manifest import build_manifest
from node.store.shard_file import key_of, read_info
from protocol.errors import MfError
from protocol.ids import encoding_text
from tests.support.processes import CommandFailed, Node

TRANSFER, WORKER = "node.transfer.process", "runtime.worker"
SLACK = 3
"""Deadlines that a person waits on are asserted this many times over: CI's machines are shared."""


def report(what: str, figure: str) -> None:
    """A measured figure for whoever reads the output (`pytest -rA`, or -s)."""
    print(f"MEASURED {what}: {figure}")


# Processes.


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def descendants(pid: int) -> list[int]:
    """The processes started by this one, and by those."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def process_of(node: Node, module: str) -> int | None:
    """The pid of the node's child that runs this module."""
    return next((pid for pid in descendants(node.pid) if module in command(pid)), None)


def running(pid: int) -> bool:
    """False for one that is gone or waits to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def pss(pid: int) -> int:
    """Proportional set size in bytes: shared pages counted by halves, thirds..."""
    return 1024 * int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])  # type: ignore[index]


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# Models and files.


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file, hidden ones included."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def memory_for_stages(folder: Path, layers: int, tokens: int, precision: str = "fp32") -> str:
    """A `--max-memory` that holds `layers` layers of this model with the embedding or head, and not two more."""
    manifest, _ = build_manifest(scan(folder), lambda done, total: None)
    cost = StageCost(manifest, precision)
    end = manifest.summary.layers or 0
    enough = max(cost.total(0, layers, tokens), cost.total(end - layers, end, tokens))
    assert enough < cost.total(1, layers + 2, tokens), "one layer more fits too"
    return str(enough)


def holders_of(node: Node, model: str) -> list[dict[str, Any]]:
    """Groups with {"group", "encoding", "k", "n", "shards": {number: [peer]}}."""
    groups: list[dict[str, Any]] = node.cli("holdings", model)["groups"]
    return groups


def shard_files(node: Node, encoding: str) -> list[tuple[int, Path]]:
    """(shard number, file) of every shard of this encoding (text form) that lies at the node."""
    found = []
    for path in (node.data_dir / "store").rglob("*"):
        key = key_of(path.name)
        if key is not None and path.is_file() and encoding_text(key.encoding) == encoding:
            found.append((key.shard, path))
    return found


def overwrite_with_noise(path: Path) -> None:
    """The shard's bytes, all of them; its header and leaf list stay, as after a silent fault of the disk."""
    length = read_info(path).bytes
    data = bytearray(path.read_bytes())
    for at in range(len(data) - length, len(data)):
        data[at] ^= 0xA5
    path.write_bytes(data)


# Over HTTP.


def metric(node: Node, name: str) -> dict[str, float]:
    """Values of one metric by label text."""
    status, _, body = node.http("GET", "/metrics")
    assert status == 200
    found = re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)$", body.decode(), re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def gauge(node: Node, name: str) -> float:
    return sum(metric(node, name).values())


@dataclass
class Reply:
    """What came of a reply: its pieces of text, the seconds from the question to each and the tokens made by then, the planned and the
    final route, the error it ended with."""

    pieces: list[str] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    planned: list[dict[str, Any]] = field(default_factory=list)
    route: list[dict[str, Any]] = field(default_factory=list)
    replaced: int = 0
    error: MfError | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def longest_pause(self) -> float:
        """Between two pieces."""
        return max((after - before for before, after in pairwise(self.at)), default=0.0)

    @property
    def longest_wait(self) -> float:
        """For the first piece, or between two."""
        return max((after - before for before, after in pairwise([0.0, *self.at])), default=0.0)

    @property
    def pace(self) -> float:
        """Tokens a second from the first piece to the last."""
        return (self.tokens[-1] - self.tokens[0]) / (self.at[-1] - self.at[0])


def ask(
    node: Node,
    model: str,
    prompt: str,
    tokens: int,
    *,
    precision: str = "fp32",
    meanwhile: Callable[[Reply], None] | None = None,
    after: int = 3,
    timeout: float = 120.0,
) -> Reply:
    """A greedy reply over the owner's socket, as `mf-node chat` asks. `meanwhile` is called once `after` pieces have come.

    The default is the reference precision: there a reply doesn't depend on where it was cut and taken up again.
    """
    reply, began = Reply(), time.monotonic()

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "planned":
            reply.planned = event["route"]
        elif event["event"] == "text" and event["text"]:
            reply.pieces.append(event["text"])
            reply.at.append(time.monotonic() - began)
            reply.tokens.append(event["tokens"])
            if meanwhile is not None and len(reply.at) == after:
                meanwhile(reply)

    wanted = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "precision": precision}
    try:
        end = call(node.data_dir, "generate", wanted, on_event, timeout=timeout)
    except MfError as error:
        reply.error = error
    else:
        reply.route, reply.replaced = end["route"], end["replaced"]
    return reply


class ChatStream:
    """A greedy streamed chat over HTTP that can be left: `with ChatStream(node, model, "hi", 64) as chat: chat.read(5)`."""

    def __init__(self, node: Node, model: str, prompt: str, max_tokens: int, timeout: float = 120.0) -> None:
        url = urlsplit(node.url)
        self._connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=timeout)
        self._body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
        }
        self.text = ""
        self.planned = ""
        self.trace: dict[str, Any] = {}

    def __enter__(self) -> ChatStream:
        self._connection.request("POST", "/v1/chat/completions", json.dumps(self._body), {"Content-Type": "application/json"})
        self._response = self._connection.getresponse()
        assert self._response.status == 200, f"{self._response.status}: {self._response.read()[:2000]!r}"
        self.planned = self._response.getheader("X-MF-Route") or ""
        self._events = self._each()
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()

    def _each(self) -> Iterator[str]:
        """Pieces of text."""
        for line in self._response:
            data = line.decode().strip().removeprefix("data:").strip()
            if data and data != "[DONE]":
                event = json.loads(data)
                assert "error" not in event, event
                self.trace = event.get("mf") or self.trace
                yield from (choice["delta"].get("content") or "" for choice in event["choices"])

    def read(self, pieces: int) -> None:
        """So many pieces of text."""
        for _ in range(pieces):
            self.text += next(piece for piece in self._events if piece)

    def rest(self) -> str:
        """All the text, at its end."""
        self.text += "".join(self._events)
        return self.text


def stages_of(planned: str) -> list[tuple[str, int, int]]:
    """(peer, first, end) of each stage in an `X-MF-Route` header."""
    return [(peer, int(first), int(end)) for peer, first, end in re.findall(r"([A-Za-z0-9]+)\[(\d+)-(\d+)\]", planned)]


def fails(node: Node, *arguments: str) -> bool:
    """Whether this command of the node ends with an error."""
    try:
        node.cli(*arguments)
    except CommandFailed:
        return True
    return False
