"""The demonstration's nodes: ordinary `mf-node` processes, spoken to by the command line and HTTP as anyone would."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from protocol.errors import MfError, Unavailable, error_from_wire

READY_WITHIN = 60.0
STOP_WITHIN = 8.0
_LAST_LINES = 15
_TOP = Path(__file__).resolve().parent.parent


class DemoNode:
    """One `mf-node run` with a directory of its own; its log is `<folder>.log`."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.folder = folder
        self.log = folder.with_suffix(".log")
        self.peer_id = ""
        self.http = ""
        self.ticket = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def name(self) -> str:
        return f"node {self.number}"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    def launch(self, *options: str) -> None:
        """Starts without waiting; a session of its own keeps the terminal's Ctrl-C for the demonstration."""
        command = [sys.executable, "-m", "node", "--data-dir", str(self.folder), "--json", "run", "--http", "127.0.0.1:0"]
        command += ["--transfer", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0", "--lend", "both", *options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True, start_new_session=True, env=_environment()
            )

    def wait_ready(self) -> None:
        """Reads the one ready line; `Unavailable` with the log's end when none comes."""
        assert self._process is not None
        assert self._process.stdout is not None
        lines: queue.Queue[str] = queue.Queue()
        stdout = self._process.stdout
        threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
        try:
            line = lines.get(timeout=READY_WITHIN)
        except queue.Empty:
            line = ""
        try:
            ready = json.loads(line)
            self.peer_id, self.http, self.ticket = ready["peer_id"], ready["http"].rstrip("/"), ready["ticket"]
        except (ValueError, KeyError):
            raise self.failure(f"{self.name} was not ready within {READY_WITHIN:.0f} s: {line.strip()[:300] or 'no word'}") from None

    def failure(self, message: str) -> Unavailable:
        """The error, with the end of this node's log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        except OSError:
            lines = []
        return Unavailable(f"{message}\n--- end of {self.log}:\n" + "\n".join(lines))

    def cli(self, *arguments: str, timeout: float = 60.0, on_progress: Callable[[str], None] | None = None) -> Any:
        """The JSON document of `mf-node ARGUMENTS`; its error is raised as its own class."""
        command = [sys.executable, "-m", "node", "--data-dir", str(self.folder), "--json", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment())
        reader = threading.Thread(target=_relay, args=(process, on_progress), daemon=True)
        clock = threading.Timer(timeout, process.kill)
        clock.start()
        reader.start()
        try:
            assert process.stdout is not None
            output = process.stdout.read()
            process.wait()
        finally:
            clock.cancel()
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(STOP_WITHIN)
        try:
            document = json.loads(output)
        except ValueError:
            raise self.failure(f"mf-node {arguments[0]} on {self.name} gave no answer within {timeout:.0f} s") from None
        if isinstance(document, dict) and set(document) == {"error"}:
            raise error_from_wire(document["error"])
        return document

    def post_stream(self, path: str, body: dict[str, Any], timeout: float) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer, as they come; `MfError` with the server's words when it refuses."""
        url = urlsplit(self.http)
        connection = http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port, timeout=timeout)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise MfError(
                    f"{self.name} answered {response.status}: {response.read(2000).decode(errors='replace')}",
                    details={"status": response.status},
                )
            for line in response:
                text = line.decode().strip()
                if text == "data: [DONE]":
                    return
                if text.startswith("data:"):
                    yield json.loads(text[5:])
        except (OSError, http.client.HTTPException) as error:
            raise self.failure(f"{self.name} broke off its answer: {error}") from error
        finally:
            connection.close()

    def kill(self) -> None:
        """SIGKILL to the node and what it started: as if the machine were gone."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_WITHIN)
        self._process = None

    def ask_to_stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait_stopped(self) -> float:
        """Seconds until it was gone; killed when it takes too long."""
        began = time.monotonic()
        if self._process is not None:
            try:
                self._process.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                self.kill()
        self._process = None
        return time.monotonic() - began


def _environment() -> dict[str, str]:
    """This environment without the user's own node settings, so that the story is the same everywhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MF_")}
    path = os.pathsep.join(filter(None, [str(_TOP), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _relay(process: subprocess.Popen[str], on_progress: Callable[[str], None] | None) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if on_progress is not None:
            on_progress(line.rstrip())
