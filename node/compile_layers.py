"""Layers compiled in the background, one shape at a time, and handed to the worker that runs them.

Who compiles starts others, so it isn't the worker: a process of its own (`runtime/compiling.py`), without weights, keys or network, with a
deadline, ended with the node. A stage runs as it is until then, and for good where nothing can be compiled: `said` tells why.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from node.compiled_cache import CompiledCache
from node.worker import Worker
from protocol.errors import DeadlineExceeded, MfError, Unavailable
from runtime.interface import Compilable, StageLoaded

log = logging.getLogger(__name__)
T = TypeVar("T")
WITHIN = 600.0
"""Seconds for one shape: half a minute on an idle machine."""
UNLIKE = "not compiled: its layers differ in kind, or lie in an order of this processor's that the compiler doesn't know"
_TOP = Path(__file__).resolve().parent.parent
_SAID = 2_000


class LayerCompiler:
    """`loaded` is told of each stage that the worker loaded; all else follows. `scratch`: where it works, `cache`: where it keeps."""

    def __init__(self, worker: Worker, cache: CompiledCache, scratch: Path, within: float = WITHIN) -> None:
        self._worker, self._cache, self._scratch, self._within = worker, cache, scratch, within
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compiled-layers")
        self._wanted: dict[str, Compilable] = {}
        self._failed: dict[str, str] = {}
        """By name of a shape, why it can't be compiled here."""
        self._task: asyncio.Task[None] | None = None
        self.said: dict[str, str] = {}
        """By stage, what came of it."""

    def loaded(self, stage: str, told: StageLoaded) -> None:
        self.said.pop(stage, None)
        if told.compilable is None:
            if told.lean:
                self.said[stage] = UNLIKE
            return
        if (why := self._failed.get(told.compilable.name)) is not None:
            self.said[stage] = why
            return
        self._wanted[told.compilable.name] = told.compilable
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve(), name="compiling of layers")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=False)

    async def _serve(self) -> None:
        while self._wanted:
            # Taken out first: a stage that loads meanwhile puts it in again.
            _name, wanted = self._wanted.popitem()
            try:
                await self._give(wanted, *await self._found(wanted))
            except (MfError, OSError) as error:
                log.warning("layers run uncompiled: %s", error, extra={"event": "layers_uncompiled"})
                self.said |= dict.fromkeys(self._of(wanted), f"not compiled: {error}")

    async def _found(self, wanted: Compilable) -> tuple[list[int], list[int]]:
        """Descriptors and lengths of the libraries, compiled first where they aren't here. What can't be compiled isn't tried again."""
        found = await self._blocking(lambda: self._cache.open(wanted.name))
        if found is None:
            try:
                await self._compile(wanted)
            except (MfError, OSError) as error:
                self._failed[wanted.name] = f"not compiled: {error}"
                raise
            found = await self._blocking(lambda: self._cache.open(wanted.name))
        if found is None:
            raise Unavailable("the compiled layers can't be read back")
        return found

    async def _give(self, wanted: Compilable, fds: list[int], lengths: list[int]) -> None:
        """To all stages of that shape."""
        try:
            for stage in self._of(wanted):
                taken = await self._worker.take_compiled(stage, fds, lengths)
                self.said[stage] = taken.said
                event = "layers_compiled" if taken.taken else "layers_uncompiled"
                log.info("%s: %s", stage[:80], taken.said, extra={"event": event})
        finally:
            for fd in fds:
                os.close(fd)

    def _of(self, wanted: Compilable) -> list[str]:
        """The stages loaded now that are of that shape."""
        return [stage for stage, told in self._worker.stages.items() if told.compilable and told.compilable.name == wanted.name]

    async def _compile(self, wanted: Compilable) -> None:
        began = time.monotonic()
        await self._blocking(lambda: self._scratch.mkdir(parents=True, exist_ok=True))
        folder = Path(await self._blocking(lambda: tempfile.mkdtemp(prefix="compile-", dir=self._scratch)))
        try:
            await self._run(wanted, folder)
            await self._blocking(lambda: self._cache.put(wanted.name, folder))
        finally:
            await asyncio.shield(self._blocking(lambda: shutil.rmtree(folder, ignore_errors=True)))
        log.info("layers compiled in %.0f s", time.monotonic() - began, extra={"event": "compiled"})

    async def _run(self, wanted: Compilable, folder: Path) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "runtime.compiling", str(folder), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env=_environment(folder), cwd=folder, process_group=0,
        )  # fmt: skip
        try:
            async with asyncio.timeout(self._within):
                _out, told = await process.communicate(msgspec.json.encode(wanted.shape))
        except TimeoutError:
            raise DeadlineExceeded(f"compiling a layer took over {self._within:.0f} s and was ended") from None
        finally:
            _end_group(process)
            await process.wait()
        if process.returncode:
            raise Unavailable(
                f"a layer can't be compiled (exit code {process.returncode}): {_last(told)}", hint="is a C++ compiler installed?"
            )

    async def _blocking(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _end_group(process: asyncio.subprocess.Process) -> None:
    """It and the compilers that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _last(told: bytes) -> str:
    lines = told[-_SAID:].decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def _environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_TOP), os.environ.get("PYTHONPATH")])),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # else a pool of processes that outlives it
        "OMP_NUM_THREADS": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
