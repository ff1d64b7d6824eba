"""The peer beside us: a Tahoe-LAFS grid on loopback: an introducer, storage nodes, one client, all of them processes that stay up."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from bench.environments import command, environment
from bench.nginx import free_port
from tests.support.wait import wait_until

REQUIREMENT = "tahoe-lafs==1.20.0"
_UP_WITHIN = 60.0


class Tahoe:
    """k of n, with n storage nodes, while entered."""

    def __init__(self, k: int, n: int, root: Path) -> None:
        self._program = environment(REQUIREMENT) / "tahoe"
        self._curl = command("curl", "curl")
        self._k, self._n = k, n
        self._root = Path(tempfile.mkdtemp(prefix="tahoe-", dir=root))
        self._running: list[subprocess.Popen[bytes]] = []
        self._url = f"http://127.0.0.1:{free_port()}"

    def __enter__(self) -> Tahoe:
        try:
            self._start_introducer()
            for number in range(self._n):
                self._make("create-node", f"store{number}", *self._listening(), "--introducer", self._furl, "--webport", "none")
                self._run(f"store{number}")
            shares = ["--shares-needed", str(self._k), "--shares-happy", str(self._n), "--shares-total", str(self._n)]
            port = self._url.rpartition(":")[2]
            self._make("create-client", "client", "--introducer", self._furl, "--webport", f"tcp:{port}:interface=127.0.0.1", *shares)
            self._run("client")
            wait_until(lambda: self._connected() == self._n, _UP_WITHIN, "the client knows all storage nodes")
        except BaseException:
            self._end()
            raise
        return self

    def _start_introducer(self) -> None:
        self._make("create-introducer", "introducer", *self._listening())
        self._run("introducer")
        furl = self._root / "introducer" / "private" / "introducer.furl"
        wait_until(furl.exists, _UP_WITHIN, "the introducer's address")
        self._furl = furl.read_text().strip()

    def _listening(self) -> list[str]:
        port = free_port()
        return ["--port", f"tcp:{port}:interface=127.0.0.1", "--location", f"tcp:127.0.0.1:{port}"]

    def _make(self, what: str, name: str, *options: str) -> None:
        subprocess.run([self._program, what, *options, str(self._root / name)], check=True, capture_output=True)

    def _run(self, name: str) -> None:
        line = [self._program, "run", "--allow-stdin-close", str(self._root / name)]
        nowhere = subprocess.DEVNULL
        self._running.append(subprocess.Popen(line, stdin=nowhere, stdout=nowhere, stderr=nowhere))

    def _connected(self) -> int:
        try:
            with urllib.request.urlopen(f"{self._url}/?t=json", timeout=5) as reply:
                servers = json.load(reply)["servers"]
        except (urllib.error.URLError, OSError):
            return 0
        return sum(server["connection_status"].lower().startswith("connected") for server in servers)

    def put(self, file: Path) -> str:
        """Its capability."""
        line = [self._curl, "-s", "-f", "-T", str(file), f"{self._url}/uri"]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()

    def get(self, capability: str, to: Path) -> float:
        """Seconds until it lies in the file `to`."""
        began = time.monotonic()
        subprocess.run([self._curl, "-s", "-f", "-o", str(to), f"{self._url}/uri/{capability}"], check=True)
        return time.monotonic() - began

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait(20)
        shutil.rmtree(self._root, ignore_errors=True)
