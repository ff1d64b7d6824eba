"""Stages that are being loaded between passes, one slice at a time, the one that began first before the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from protocol.errors import MfError, NotFound
from runtime.interface import StageLoaded
from runtime.sliced import Sliced

log = logging.getLogger(__name__)
Answer = Callable[[Any], None]
"""Takes the result of a call, or the `MfError` that it failed with."""


class Loads:
    """By stage."""

    def __init__(self) -> None:
        self._loads: dict[str, tuple[Sliced[StageLoaded], Answer]] = {}

    def __len__(self) -> int:
        return len(self._loads)

    def begin(self, stage: str, work: Sliced[StageLoaded], answer: Answer) -> None:
        """The first slice at once: what it raises is the caller's. `answer` is called at the end of the last."""
        next(work)
        self._loads[stage] = work, answer

    def step(self) -> None:
        """One slice."""
        stage, (work, answer) = next(iter(self._loads.items()))
        result: Any
        try:
            next(work)
            return
        except StopIteration as done:
            result = done.value
        except MfError as error:
            result = error
        except Exception as error:  # boundary: a foreign class may raise anything; its text may hold what it was given
            log.error("load_stage failed: %s", type(error).__name__)
            result = MfError(f"the worker failed in load_stage: {type(error).__name__}")
        del self._loads[stage]
        answer(result)

    def give_up(self, stage: str) -> None:
        """Whoever waits for it is told."""
        if stage in self._loads:
            work, answer = self._loads.pop(stage)
            work.close()
            answer(NotFound("this stage is unloaded"))
