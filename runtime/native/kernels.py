"""The compiled kernels in this process: taken from a file of this machine, or compiled into it first.

The file lies in a folder of the user's (`MF_KERNELS`, else the user's cache), is named by what it was made from (these sources, the
compiler, the processor) and carries its digest. It is code: whoever can write there can do anything here anyhow, and the folder is made
for its owner alone. Nothing that came from others is near: it is mapped before the worker shuts itself in and reads what strangers
published.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import importlib.metadata
import mmap
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import blake3

FOLDER = "MF_KERNELS"
"""The variable that names the folder; "off": no kernels."""
_MAGIC = b"mf kernels 1\n\0\0\0"
_HEADER = len(_MAGIC) + 8 + 32
_LARGEST = 8 << 20
_SECONDS = 90.0
"""For compiling, after which they are done without."""
_SOURCES = ("fields", "machine", "compiled", "shorten", "whole_products", "products", "rows", "team", "stage_pass", "image")

Run = Callable[[int, int], int]


class Missing(Exception):
    """The text says why there are none."""


def written(target: Path, image: bytes, entry: int) -> None:
    """The file, whole or not at all."""
    beside = target.with_suffix(f".{os.getpid()}")
    beside.write_bytes(_MAGIC + entry.to_bytes(8, "little") + blake3.blake3(image).digest() + image)
    beside.replace(target)


@functools.cache
def found() -> Run | str:
    """The kernels, or why there are none. Compiles them where that wasn't done: not to be called from within the sandbox the first time."""
    try:
        path = _path()
        if not path.exists():
            _build(path)
        return _mapped(path)
    except (Missing, OSError, ValueError) as error:
        return str(error) or type(error).__name__


def _path() -> Path:
    folder = os.environ.get(FOLDER, "off")
    if folder == "off":
        raise Missing("they are switched off")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Missing("they are made for Linux on x86-64 alone")
    try:
        versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
    except importlib.metadata.PackageNotFoundError:
        raise Missing("numba isn't installed (pip install .[kernels])") from None
    told = blake3.blake3("\n".join([*versions, platform.python_version(), _processor()]).encode())
    for name in _SOURCES:
        told.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return Path(folder) / f"{told.hexdigest()[:32]}.image"


def _processor() -> str:
    """What the compiler looks at: the model, and what instructions the kernel tells of."""
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return "\n".join(sorted(line for line in lines if line.split("\t")[0].strip() in ("model name", "cpu family", "model", "flags")))


def _build(path: Path) -> None:
    """One process compiles, others wait for it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        try:
            done = subprocess.run(
                [sys.executable, "-m", "runtime.native.build", str(path)],
                env={key: value for key, value in os.environ.items() if key in ("PATH", "PYTHONPATH", "HOME", "LANG")},
                cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Missing(f"they weren't compiled within {_SECONDS:.0f} s") from None
        if done.returncode or not path.exists():
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise Missing(f"they can't be compiled: {said[-1][:200] if said else 'the compiler ended'}")


def _mapped(path: Path) -> Run:
    content = path.read_bytes() if path.stat().st_size <= _LARGEST else b""
    image = content[_HEADER:]
    entry = int.from_bytes(content[len(_MAGIC) : len(_MAGIC) + 8], "little")
    if not content.startswith(_MAGIC) or blake3.blake3(image).digest() != content[_HEADER - 32 : _HEADER] or entry >= len(image):
        path.unlink(missing_ok=True)
        raise Missing(f"{path} was damaged; it is gone, and made anew next time")
    room = mmap.mmap(-1, len(image), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
    room.write(image)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    libc = ctypes.CDLL(None, use_errno=True)
    whole = -(-len(image) // mmap.PAGESIZE) * mmap.PAGESIZE
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(whole), mmap.PROT_READ | mmap.PROT_EXEC):
        raise Missing(f"memory can't be made code here: {os.strerror(ctypes.get_errno())}")
    kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    function = kind(address + entry)

    def run(thread: int, given: int, room: mmap.mmap = room) -> int:
        """As numba's functions are called: room for a result and for an error, of which these make none."""
        return int(function(_RESULT_AT, _ERROR_AT, thread, given))

    return run


def main() -> None:
    """`python -m runtime.native.kernels`: sees that they are there, and says so in a line."""
    run = found()
    sys.stdout.write(f"{run}\n" if isinstance(run, str) else f"compiled for this processor, in {os.environ[FOLDER]}\n")


_RESULT, _ERROR = (ctypes.c_int64 * 16)(), (ctypes.c_int64 * 16)()
_RESULT_AT, _ERROR_AT = ctypes.addressof(_RESULT), ctypes.addressof(_ERROR)

if __name__ == "__main__":
    main()
