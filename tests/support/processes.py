"""Swarms of real `mf-node` processes for tests: port 0 everywhere, a directory each, always cleaned up by pid."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tests.support.wait import wait_for_event, wait_until

TOP = Path(__file__).resolve().parents[2]
READY_WITHIN = 30.0
STOP_WITHIN = 8.0


class CommandFailed(AssertionError):
    """A command of the node ended with an error; `error` is the document's, `code` the exit code."""

    def __init__(self, arguments: tuple[str, ...], code: int, error: dict[str, Any]) -> None:
        super().__init__(f"mf-node {' '.join(arguments)[:200]}: exit {code}: {error}")
        self.code = code
        self.error = error


def environment(**more: str) -> dict[str, str]:
    """This environment without the user's node settings. No layers are served unasked: they would change routes under a test's feet.
    No second worker stands by, which would take a core for some seconds.

    torch alone, whose texts are compared with transformers' own; what llama.cpp is for has tests that ask for it.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MF_") or name == "MF_CACHE"}
    return {
        **kept,
        "PYTHONPATH": str(TOP),
        "PYTHONUNBUFFERED": "1",
        "MF_SERVE_LAYERS": "false",
        "MF_SPARE_WORKER": "false",
        "MF_ENGINE": "torch",
        **more,
    }


def mf_node(*arguments: str, timeout: float = 30.0, **env: str) -> subprocess.CompletedProcess[str]:
    """One command of the program, as a person runs it."""
    command = [sys.executable, "-m", "node", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment(**env), cwd=TOP, stdin=subprocess.DEVNULL
    )


class Node:
    """One node. `log` is its standard error, JSON lines; `ready` the document it printed. `module`: another program than an honest node."""

    def __init__(self, data_dir: Path, *options: str, env: dict[str, str] | None = None, module: str = "node") -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_name(data_dir.name + ".log")
        self.ready: dict[str, Any] = {}
        self._options = options
        self._env = env or {}
        self._module = module
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []

    @property
    def pid(self) -> int:
        assert self._process is not None, "the node isn't running"
        return self._process.pid

    @property
    def peer_id(self) -> str:
        return str(self.ready["peer_id"])

    @property
    def ticket(self) -> str:
        return str(self.ready["ticket"])

    @property
    def url(self) -> str:
        return str(self.ready["http"]).rstrip("/")

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self, *more: str) -> Node:
        """Starts without waiting."""
        command = [sys.executable, "-m", self._module, "--data-dir", str(self.data_dir), "--json", "run", "--log-format", "json"]
        command += ["--http", "127.0.0.1:0", "--transfer", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0", *self._options, *more]
        self._lines.clear()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True, cwd=TOP, env=environment(**self._env),
                process_group=0,  # not a session: a kernel that groups by sessions would weigh no process against another node's
            )  # fmt: skip
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.append(line)

    def wait_ready(self, timeout: float = READY_WITHIN) -> Node:
        process = self._process
        assert process is not None
        try:
            wait_until(lambda: bool(self._lines) or process.poll() is not None, timeout, "the ready line")
            self.ready = json.loads(self._lines[0]) if self._lines else {}
        except (AssertionError, ValueError) as error:
            raise AssertionError(f"not ready: {error}\n{self.log_end()}") from error
        assert self.ready.get("event") == "ready", f"not ready: {self.ready} exit {process.poll()}\n{self.log_end()}"
        return self

    def start(self, *more: str) -> Node:
        return self.launch(*more).wait_ready()

    def log_end(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else "(no log)"

    def event(self, name: str, timeout: float, **fields: Any) -> dict[str, Any]:
        """The first line of the log with this event and these fields."""
        return wait_for_event(self.log, name, timeout, **fields)

    def cli(self, *arguments: str, timeout: float = 60.0) -> Any:
        """The document of a command; `CommandFailed` when it ends with an error."""
        done = mf_node("--data-dir", str(self.data_dir), "--json", *arguments, timeout=timeout)
        document = json.loads(done.stdout) if done.stdout.strip() else {"error": {"message": done.stderr[-2000:]}}
        if done.returncode != 0:
            raise CommandFailed(arguments, done.returncode, document.get("error", {}))
        return document

    def http(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 120.0
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body of one request."""
        connection = self._connection(timeout)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            given = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(method, path, data, {**given, **(headers or {})})
            reply = connection.getresponse()
            return reply.status, {name.lower(): value for name, value in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        """With TLS, trusting the node's own certificate and no other."""
        url = urlsplit(self.url)
        if url.scheme == "http":
            return http.client.HTTPConnection(url.hostname or "", url.port, timeout=timeout)
        trusting = ssl.create_default_context(cafile=self.data_dir / "http.crt")
        return http.client.HTTPSConnection(url.hostname or "", url.port, timeout=timeout, context=trusting)

    def post(self, path: str, body: Any, timeout: float = 120.0) -> Any:
        """The JSON of a good answer."""
        status, _, data = self.http("POST", path, body, timeout=timeout)
        assert status == 200, f"{path}: {status} {data[:1000]!r}\n{self.log_end()}"
        return json.loads(data)

    def freeze(self) -> None:
        """SIGSTOP to the node and its children, as a machine that hangs."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_WITHIN)

    def stop(self) -> int:
        """SIGTERM; the exit code. AssertionError when it isn't gone in time."""
        return self.end_by(signal.SIGTERM)

    def end_by(self, number: signal.Signals) -> int:
        """As `stop`, by any signal; SIGINT goes to the children too, as from a terminal."""
        assert self._process is not None
        if number is signal.SIGINT:
            os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)
        try:
            return self._process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not stopped within {STOP_WITHIN} s\n{self.log_end()}") from None


class Swarm:
    """`n` nodes of one private swarm: the first makes the ticket. `with Swarm(tmp_path, 6) as swarm: swarm.nodes[0].cli(...)`."""

    def __init__(self, folder: Path, n: int, *options: str, env: dict[str, str] | None = None) -> None:
        self._folder = folder
        self._env = env
        self._options = options
        self._size = n
        self.nodes: list[Node] = []

    def __enter__(self) -> Swarm:
        try:
            first = self.add()
            for node in [self._new("--join", first.ticket).launch() for _ in range(self._size - 1)]:
                node.wait_ready()
            self.wait_met()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _new(self, *more: str) -> Node:
        node = Node(self._folder / f"node{len(self.nodes)}", *self._options, *more, env=self._env)
        self.nodes.append(node)
        return node

    def add(self, *more: str) -> Node:
        """One more node, ready."""
        return self._new(*more).start()

    def living(self) -> list[Node]:
        return [node for node in self.nodes if node.alive]

    def wait_met(self, timeout: float = 30.0) -> None:
        """Until every living node sees all the others alive."""
        wanted = {node.peer_id for node in self.living()}
        for node in self.living():

            def met(node: Node = node) -> bool:
                return wanted - {node.peer_id} <= {peer["peer_id"] for peer in node.cli("status")["peers"] if peer["alive"]}

            wait_until(met, timeout, f"{node.data_dir.name} sees the others")

    def close(self) -> None:
        for node in self.nodes:
            if node.alive:
                node.kill()
