"""The peer beside us: Language Pipes on loopback, a process for each stage, the first with embedding, head and HTTP."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from bench.environments import Missing, environment
from bench.nginx import free_port
from tests.support.wait import wait_until

REQUIREMENTS = ("torch==2.13.0", "language-pipes==2.5.0")
MODEL = "bench/model"
_UP_WITHIN = 120.0


class LanguagePipes:
    """The model in `folder` dealt evenly over so many processes while entered; `layer_bytes` is what one of its `layers` takes."""

    def __init__(self, folder: Path, stages: int, layers: int, layer_bytes: int, root: Path) -> None:
        self._program = environment(*REQUIREMENTS) / "language-pipes"
        self._folder, self._stages, self._layers, self._layer = folder, stages, layers, layer_bytes
        self._root = Path(tempfile.mkdtemp(prefix="language-pipes-", dir=root))
        self._running: list[subprocess.Popen[bytes]] = []
        self._peer_port, self._http_port = free_port(), free_port()

    def __enter__(self) -> LanguagePipes:
        try:
            self._lay_model()
            for number in range(self._stages):
                self._run(number)
            # its HTTP answers before its stages know each other
            wait_until(self._answers, _UP_WITHIN, "a reply of one token")
        except BaseException:
            self._end()
            raise
        return self

    def _lay_model(self) -> None:
        """Where it looks for what it has downloaded: nothing is asked of a hub then."""
        data = self._root / "models" / MODEL / "data"
        data.mkdir(parents=True)
        for file in self._folder.iterdir():
            (data / file.name).symlink_to(file)

    def _run(self, number: int) -> None:
        """Each takes the layers that those before left, as far as its memory goes: one after the other, that all be alike."""
        config, log = self._root / f"node{number}.toml", self._root / f"node{number}.log"
        config.write_text(self._config(number))
        # Threads that wait asleep, as ours do: on few cores those that spin take the time of the stage that computes.
        env = {**os.environ, "LP_APP_DIR": str(self._root / f"app{number}"), "LP_MODEL_DIR": str(self._root / "models")}
        env |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
        line = [self._program, "-c", str(config), "run"]
        with log.open("wb") as out:
            made = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=self._root)
        self._running.append(made)
        end = self._share(number)[-1]

        def loaded() -> bool:
            if made.poll() is not None:
                raise Missing(f"Language Pipes ended with {made.returncode}: {log.read_text().strip().splitlines()[-1:]}")
            return f"-{end} for {MODEL} successfully loaded" in log.read_text()

        wait_until(loaded, _UP_WITHIN, f"layers up to {end} at process {number}")

    def _share(self, number: int) -> range:
        return range(self._layers * number // self._stages, self._layers * (number + 1) // self._stages)

    def _config(self, number: int) -> str:
        memory = (len(self._share(number)) + 0.5) * self._layer / (1 << 30)
        port = self._peer_port if number == 0 else free_port()
        lines = [f'node_id = "node{number}"', 'network_ip = "127.0.0.1"', f"peer_port = {port}"]
        if number == 0:
            lines.append(f"job_port = {self._http_port}")
        else:
            lines.append(f'bootstrap_nodes = [{{ address = "127.0.0.1", port = {self._peer_port} }}]')
        if number == 0:
            lines += ["[[end_models]]", f'model_id = "{MODEL}"', "num_local_layers = 0", 'device = "cpu"']
        lines += ["[[layer_models]]", f'model_id = "{MODEL}"', 'device = "cpu"', f"memory = {memory}", "data_type = 16"]
        return "\n".join(lines) + "\n"

    def _answers(self) -> bool:
        try:
            return len(self.ask("Hi", 2)) > 0
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def ask(self, prompt: str, tokens: int) -> list[float]:
        """When each piece of a greedy reply came, by the monotonic clock."""
        connection = http.client.HTTPConnection("127.0.0.1", self._http_port, timeout=_UP_WITHIN)
        wanted = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "stream": True}
        try:
            body = json.dumps(wanted | {"max_completion_tokens": tokens})
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            if reply.status != 200:
                raise ValueError(f"{reply.status}: {reply.read(200)!r}")
            return [time.monotonic() for line in reply if _has_text(line)]
        finally:
            connection.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._running:
            process.kill()  # it has no way to end that doesn't wait for its jobs
        for process in self._running:
            process.wait(20)
        shutil.rmtree(self._root, ignore_errors=True)


def _has_text(line: bytes) -> bool:
    data = line.decode().strip().removeprefix("data:").strip()
    if not data.startswith("{"):
        return False
    event = json.loads(data)
    if "error" in event:
        raise ValueError(str(event["error"])[:200])
    return any(choice["delta"].get("content") for choice in event["choices"])
