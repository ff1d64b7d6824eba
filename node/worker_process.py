"""One process of the worker, from its start to its end: spawned with nothing of the node's, configured, watched, its folder removed."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bootstrap.demo_model import cache_folder
from node.channel import Channel, Method
from node.turn import Turn
from protocol.errors import Unavailable
from runtime import interface as api
from runtime.native.kernels import FOLDER as KERNELS

log = logging.getLogger(__name__)
_TOP = Path(__file__).resolve().parent.parent
START_SECONDS = 120.0
STOP_SECONDS = 2.0


@dataclass(frozen=True)
class Outfit:
    """What every life of a worker gets: `scratch` the folder in which its own is made; the rest as in `api.WorkerConfig`."""

    scratch: Path
    threads: int
    memory: int
    reuse: bool = True
    device: str = "cpu"


class WorkerProcess:
    """`ending` gives its exit code once it has ended and its folder is gone; `told` is what it said when it was configured."""

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel, scratch: Path) -> None:
        self.process, self.channel, self.scratch = process, channel, scratch
        self.begun = time.monotonic()
        self.told: api.Configured | None = None
        self.ending = asyncio.create_task(self._end(), name="worker watcher")

    @classmethod
    async def spawn(cls, outfit: Outfit, methods: Mapping[str, Method], turn: Turn) -> WorkerProcess:
        """Not configured yet; `Unavailable` where the system can't start it."""
        here, there = socket.socketpair()
        outfit.scratch.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="worker-", dir=outfit.scratch))
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "runtime.worker",
                str(there.fileno()),
                pass_fds=[there.fileno()],
                env=_environment(scratch, outfit.threads),
                cwd=scratch,
                stdin=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            here.close()
            shutil.rmtree(scratch, ignore_errors=True)
            raise Unavailable(f"the worker can't be started: {error.strerror}") from error
        finally:
            there.close()
        channel = Channel(here, methods, "worker", turn)
        channel.start()
        return cls(process, channel, scratch)

    async def configure(self, outfit: Outfit, *, ahead: bool = False) -> api.Configured:
        """Imports torch there (`ahead`: also what a model needs) and shuts it in; `ChannelClosed`, `DeadlineExceeded`."""
        config = api.WorkerConfig(
            scratch=str(self.scratch),
            threads=outfit.threads,
            memory=outfit.memory,
            reuse=outfit.reuse,
            device=outfit.device,
            ahead=ahead,
        )
        self.told = await self.channel.call("configure", config, api.Configured, timeout=START_SECONDS)
        return self.told

    @property
    def alive(self) -> bool:
        return not self.channel.closed.is_set()

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()

    async def close(self) -> int:
        """Its exit code."""
        await self.channel.close()
        return await self.ending

    async def _end(self) -> int:
        await self.channel.closed.wait()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                code = await self.process.wait()
        except TimeoutError:
            self.process.kill()
            code = await self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)
        return code


def how_it_ended(code: int) -> str:
    """In words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def kernels_folder() -> str:
    """Where this user's compiled kernels lie, or "off"."""
    return os.environ.get(KERNELS) or str(cache_folder() / "kernels")


def _environment(scratch: Path, threads: int) -> dict[str, str]:
    """Nothing of the node's but what finds the code: no keys, no proxies, no tokens."""
    search = os.pathsep.join(filter(None, [str(_TOP), os.environ.get("PYTHONPATH")]))
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": search,
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(scratch / "hf"),
        "TOKENIZERS_PARALLELISM": "false",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin for long starve each other where the cores are shared
        "GOMP_SPINCOUNT": "5000",  # some microseconds: a step waits hundreds of times, and to be woken takes longer than that
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "MKL_CBWR": "AUTO,STRICT",  # sums in the same order wherever a matrix lies in memory: runtime/row_attention.py counts on it
        KERNELS: kernels_folder(),
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
