"""What is loaded in the worker, and a session's place on it (node/stage_room.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.errors import MfError
from runtime.interface import Left


@dataclass
class LoadedStage:
    """`key` names it to the worker; `bytes` of weights; `goes_back`: whether sessions can drop positions; `users` sessions on it now;
    `timings` of its making, seconds; `checked` what its self-test says that it did. `engine` torch|llama and `why`; `model` and `precision`
    as asked, of layers [first, end). `before`: the worker's measured memory before it was loaded, `beside` the stages in it then."""

    key: str
    bytes: int
    goes_back: bool = False
    engine: str = "torch"
    why: str = ""
    model: str = ""
    precision: str = ""
    first: int = 0
    end: int = 0
    users: int = 0
    used_at: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    checked: str = ""
    before: int | None = None
    beside: frozenset[str] = frozenset()


@dataclass
class StageHold:
    """A session's place on a stage: `reused` positions are there from an earlier one; `left`, set before leaving: what it computed may stay
    under that name. `fault`: why the place is gone, once it is.
    """

    stage: LoadedStage
    reused: int = 0
    left: Left | None = None
    fault: MfError | None = None
    _told: Callable[[MfError], None] | None = None

    def fail(self, fault: MfError) -> None:
        """What the session had there is lost: said at once, not when its next step comes."""
        if self.fault is None:
            self.fault = fault
            if self._told is not None:
                self._told(fault)

    def when_lost(self, told: Callable[[MfError], None]) -> None:
        """`told` hears the fault, now where it is known already."""
        self._told = told
        if self.fault is not None:
            told(self.fault)
