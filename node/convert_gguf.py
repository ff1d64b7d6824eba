"""A GGUF file dequantised to a Hugging Face folder of bf16, by a child process, to be published as any other model.

The child (`runtime/convert_gguf.py`) imports transformers and shuts itself in before it opens the file: no network, nothing
readable but Python and that file, nothing writable but its folder, bounded memory. The header has passed our own checks by then.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from node.machine import available_memory
from node.model_folder import ModelFolder
from node.model_headers import gguf_header
from node.owner import Notify
from node.transfer.remote import child_environment
from protocol import limits
from protocol.errors import BadInput, StorageFull, Unavailable

log = logging.getLogger(__name__)
PREFIX = "import-"
BYTES_A_PARAMETER = 8
"""Of memory: what transformers unpacks (fp32), the model (bf16), what passes between the two. 135 M weights took 0.9 GiB in all."""
BASE = 1536 * limits.MIB
SILENT = 600.0
"""Seconds without a word from the child: it says when each step begins."""


class GgufConverter:
    """`scratch`: the data directory, on whose disk the folder lies until it is published."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    @asynccontextmanager
    async def dequantised(self, source: ModelFolder, notify: Notify) -> AsyncIterator[Path]:
        """The folder, removed in the end. `BadInput` when it can't be converted, `Unavailable` or `StorageFull` when not here."""
        loop = asyncio.get_running_loop()
        found = source.files[source.checkpoint[0]]
        if len(source.checkpoint) > 1:
            raise BadInput(f"{found.name}: a GGUF model in {len(source.checkpoint)} parts can't be dequantised", hint="use --gguf keep")
        header = await loop.run_in_executor(None, gguf_header, found)
        parameters = sum(math.prod(tensor.shape) for tensor in header.tensors)
        memory = self._check_room(found.name, parameters)
        work = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._scratch))
        try:
            kinds = sorted({tensor.dtype for tensor in header.tensors})
            await notify(
                {"event": "note", "text": f"dequantising {found.name} ({', '.join(kinds)}; {parameters / 1e6:.0f} M weights) to bf16"}
            )
            made, named = work / "made", work / "in" / found.name
            await loop.run_in_executor(None, _lay_out, made, named, found.path)
            carried = await self._run(named, made, memory, notify)
            text = f"dequantised {len(header.tensors)} tensors to bf16 safetensors; carried over: {carried}"
            await notify({"event": "note", "text": text + ". The GGUF file itself isn't published (--gguf keep does that)"})
            yield made
        finally:
            await loop.run_in_executor(None, lambda: shutil.rmtree(work, ignore_errors=True))

    def _check_room(self, name: str, parameters: int) -> int:
        """Bytes of memory the child may take."""
        need, free = BYTES_A_PARAMETER * parameters + BASE, available_memory()
        if need > free:
            raise Unavailable(
                f"{name}: dequantising {parameters / 1e9:.1f} G weights takes about {need >> 20} MiB of memory, {free >> 20} MiB are free",
                hint="use --gguf keep, or a machine with more memory",
            )
        disk = shutil.disk_usage(self._scratch).free
        if 2 * parameters > disk:
            raise StorageFull(f"{name}: dequantised it takes {2 * parameters} bytes for a while, {disk} are free in {self._scratch}")
        return need

    async def _run(self, source: Path, made: Path, memory: int, notify: Notify) -> str:
        """What was carried over besides the weights, in words."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "runtime.convert_gguf", str(source), str(made), str(memory),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**child_environment(), "HOME": str(made.parent / "home")},
        )  # fmt: skip
        errors = asyncio.create_task(_last_words(process.stderr))
        try:
            carried = await _follow(process, notify)
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            said = await errors
        if process.returncode:
            raise BadInput(f"{source.name}: it can't be dequantised: {said}", hint="use --gguf keep to store it as it is")
        return carried


def _lay_out(made: Path, named: Path, source: Path) -> None:
    """An empty folder to fill, and one with nothing but a link to the file: transformers lists the folder a file lies in."""
    made.mkdir()
    named.parent.mkdir()
    named.symlink_to(source)


async def _follow(process: asyncio.subprocess.Process, notify: Notify) -> str:
    carried = ""
    assert process.stdout is not None
    while True:
        try:
            async with asyncio.timeout(SILENT):
                line = await process.stdout.readline()
        except TimeoutError:
            raise Unavailable(f"dequantising said nothing for {SILENT:.0f} s and was ended", hint="use --gguf keep") from None
        if not line:
            return carried
        told = _parsed(line)
        carried = str(told.get("carried", carried))
        if "done" in told:
            await notify({"event": "progress", "stage": "import", "done": told["done"], "total": told["total"]})


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


async def _last_words(stream: asyncio.StreamReader | None) -> str:
    """The last line of what the child says on standard error, shortened; all of it is read."""
    last = b""
    assert stream is not None
    while data := await stream.read(65_536):
        last = (last + data)[-4_096:]
    lines = last.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no reason was given"
