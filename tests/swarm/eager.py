"""A node that runs every session again and looks at its layers every two seconds, for tests: `python -m tests.swarm.eager`.

With `LIE=skip` it hands on the rows it was given as if its layers had done something to them (a first stage, which is given tokens,
hands on nothing but the rows it began with, turned about); honest in all else.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import node.serve_layers
import node.stage_audit
import runtime.stage_choice
from node.__main__ import main
from node.worker import Worker
from protocol.errors import MfError
from runtime.interface import Step, Stepped

_honest_step = Worker.begin_step


def _turned(rows: bytes) -> bytes:
    """The same numbers with the other sign, in bf16."""
    return bytes(byte ^ 0x80 if at % 2 else byte for at, byte in enumerate(rows))


def begin_step(self: Worker, params: Step, done: Callable[[Stepped | MfError], None]) -> None:
    def lying(answer: Stepped | MfError) -> None:
        if isinstance(answer, Stepped) and answer.hidden is not None:
            answer.hidden = params.hidden if params.hidden is not None else _turned(answer.hidden)
        done(answer)

    _honest_step(self, params, lying)


node.stage_audit.AUDITED = 1.0
node.serve_layers.LOOK_EVERY = runtime.stage_choice.LOOK_EVERY = 2.0
if os.environ.get("LIE") == "skip":
    Worker.begin_step = begin_step  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
