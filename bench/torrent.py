"""The peer beside us: libtorrent, one process for each seeder and one downloader that stays up, on loopback."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.environments import environment

REQUIREMENT = "libtorrent==2.1.1"


class _Session:
    def __init__(self, python: Path) -> None:
        program = Path(__file__).with_name("torrent_process.py")
        # -P: this folder's own names must not hide the libraries'.
        self._process = subprocess.Popen([python, "-P", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **what: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"libtorrent ended with {self._process.wait(5)} when asked for {what}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(10)


class Torrent:
    """`file` seeded by `seeders` processes while entered."""

    def __init__(self, file: Path, seeders: int) -> None:
        self._python = environment(REQUIREMENT) / "python"
        self._file, self._size = file, seeders
        self._sessions: list[_Session] = []
        self._ports: list[int] = []

    def __enter__(self) -> Torrent:
        try:
            self._downloader = self._start()
            self._torrent = self._downloader.ask(make=str(self._file))["torrent"]
            for _ in range(self._size):
                self._ports.append(self._start().ask(seed=str(self._file), torrent=self._torrent)["port"])
        except BaseException:
            self._end()
            raise
        return self

    def _start(self) -> _Session:
        self._sessions.append(_Session(self._python))
        return self._sessions[-1]

    def get(self, to: Path) -> float:
        """Seconds until the file lies verified in the folder `to`."""
        to.mkdir()
        seconds: float = self._downloader.ask(get=self._torrent, to=str(to), **{"from": self._ports})["seconds"]
        return seconds

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for session in self._sessions:
            session.end()
        Path(f"{self._file}.torrent").unlink(missing_ok=True)
