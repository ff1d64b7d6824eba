"""A node that runs every session again and looks at its layers every two seconds, for tests: `python -m tests.swarm.eager`.

With `LIE=skip` it hands on the rows it was given as if its layers had done something to them; honest in all else.
"""

from __future__ import annotations

import os

import node.serve_layers
import node.stage_audit
import runtime.stage_choice
from node.__main__ import main
from node.worker import Worker
from runtime.interface import Step, Stepped

_honest_step = Worker.step


async def step(self: Worker, params: Step) -> Stepped:
    done = await _honest_step(self, params)
    if params.hidden is not None and done.hidden is not None:
        done.hidden = params.hidden
    return done


node.stage_audit.AUDITED = 1.0
node.serve_layers.LOOK_EVERY = runtime.stage_choice.LOOK_EVERY = 2.0
if os.environ.get("LIE") == "skip":
    Worker.step = step  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
