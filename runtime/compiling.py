"""A process that compiles a layer's two parts: `python -m runtime.compiling FOLDER`, the shape as JSON on standard input.

It is the one process here that may start others (the C++ compiler), so it gets nothing: no weights, no keys, no channel, no network, an
environment of its own. FOLDER is the one place where it writes; there it leaves `enter.so` and `leave.so` and says so on standard output.
Its deadline is the node's, with whom it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from runtime.compiled_shape import PARTS, LayerShape

_NICE, _PR_SET_PDEATHSIG = 15, 1
_DATA = 4 << 30
"""Bytes of private memory for each process: the compiler takes some hundred MB."""


def main() -> None:
    _die_with_parent()
    folder = Path(sys.argv[1])
    shape = msgspec.json.decode(sys.stdin.buffer.read(1 << 16), type=LayerShape)
    shape.check()
    os.nice(_NICE)
    import torch
    import torch._inductor
    import torch.export

    from runtime import sandbox

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_DATA, _DATA))
    report = sandbox.enter_compiler(folder)
    torch.set_num_threads(1)
    for part in PARTS:
        compile_part(shape, part, folder)
    sys.stdout.write(json.dumps({"sandbox": report}) + "\n")


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == 1:
            os._exit(0)


def compile_part(shape: LayerShape, part: str, folder: Path) -> Path:
    """The library, `PART.so` in `folder`."""
    import torch

    from runtime.compiled_piece import made_up, piece

    inductor: Any = torch._inductor
    with torch.no_grad():
        exported = torch.export.export(piece(shape, part).eval(), made_up(shape, part))
        made = Path(inductor.aot_compile(exported.module(), made_up(shape, part)))
    target = folder / f"{part}.so"
    shutil.copyfile(made, target)  # the sandbox lets nothing be moved from folder to folder
    return target


if __name__ == "__main__":
    main()
