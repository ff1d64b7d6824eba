"""What the sessions of a node's stages work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from node.ending import Ending
from node.figures import Figures
from node.lanes import Lanes
from node.locate import Locator
from node.stage_room import StageRoom
from node.statements import WAITING_BYTES, Seal
from node.step_log import LogRoom
from node.steps import Steps
from node.worker import Worker
from protocol.ids import PeerId


@dataclass
class StageParts:
    """What every session of a node works with."""

    me: PeerId
    steps: Steps
    locator: Locator
    room: StageRoom
    worker: Worker
    logs: LogRoom
    figures: Figures = field(default_factory=Figures)
    seal: Seal | None = None
    unprinted: LogRoom = field(default_factory=lambda: LogRoom(WAITING_BYTES))
    trusted: Callable[[PeerId], bool] = lambda _peer: False
    """Whose sessions go before strangers'."""
    ending: Ending = field(default_factory=Ending)
    lanes: Lanes | None = None
