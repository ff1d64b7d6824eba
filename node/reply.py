"""What is known of one reply while it is made (node/generate.py)."""

from __future__ import annotations

from dataclasses import dataclass, field

from node.gateway import GenerationRequest, StageTime
from node.kept_prefixes import Prefix
from node.line_news import LineNews
from node.locate import Located
from node.losses import Losses
from node.pause import Pause
from node.stage_patience import StagePatience
from protocol.messages import Sampling, TokenLogprob
from runtime.routing import Plan


@dataclass
class Reply:
    """One reply in the making."""

    request: GenerationRequest
    located: Located
    eos: list[int]
    prompt: list[int]
    new_max: int
    started: float
    losses: Losses
    made: list[int] = field(default_factory=list)
    finish: str | None = None
    replaced: int = 0
    fruitless: int = 0
    moved: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)
    prefix: Prefix | None = None
    """What an earlier reply may have left at the stages of the first plan."""
    reused: int = 0
    stages: list[StageTime] = field(default_factory=list)
    """What the stages told of their time."""
    plan: Plan | None = None
    scores: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    """Of the prompt's tokens, where they are echoed with their logarithms."""
    sampling: Sampling = field(default_factory=Sampling)
    news: LineNews = field(default_factory=LineNews)
    patience: StagePatience = field(default_factory=StagePatience)
    pause: Pause = field(default_factory=lambda: Pause(0.0))
    memory: int | None = None
    """Bytes that the model took here where it was made here."""

    def begin(self, now: float) -> None:
        """Its first token is waited for from now on."""
        self.moved, self.pause = now, Pause(now)

    @property
    def tokens_max(self) -> int:
        return len(self.prompt) + self.new_max
