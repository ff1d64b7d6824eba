"""What a stage's sequence left is gone on from: exactly, by who can name it, and never where memory can't be cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.errors import BadInput, Conflict, MfError
from protocol.messages import Sampling
from runtime import interface as api
from runtime.kv_pool import KEPT_SECONDS
from tests.runtime.lean_kinds import KINDS
from tests.runtime.support import stored_tensors, tiny_config, tiny_model
from tests.runtime.test_engine import computed, engine_with, load

HISTORY = [(31 * at) % 127 for at in range(60)]
QUESTION = [5, 6, 7, 8]
CUTS = [(0, 6)], [(0, 3), (3, 6)], [(0, 2), (2, 4), (4, 6)]


class Stages:
    """A pipeline of stages in one engine, in fp32; `rows` counts what each computed."""

    def __init__(self, folder: Path, cuts: list[tuple[int, int]], config: dict[str, Any] | None = None, **changes: Any) -> None:
        config = config or tiny_config()
        self.engine = engine_with(folder, config, **changes)
        self.cuts = cuts
        self.rows = [0] * len(cuts)
        tensors = stored_tensors(tiny_model(config))
        for first, end in cuts:
            load(self.engine, tensors, first, end, stage=f"{first}", precision="fp32")

    def open(self, name: str, after: str | None = None, positions: int = 0, owner: str = "entry me") -> list[int]:
        """How much each stage has."""
        made = []
        for first, _end in self.cuts:
            asked = api.OpenSequence(stage=f"{first}", session=f"{name}.{first}", tokens_max=200, sampling=Sampling())
            if after is not None:
                asked.after, asked.positions = api.Left(owner, f"{after}.{first}"), positions
            made.append(self.engine.open_sequence(asked).reused)
        return made

    def close(self, name: str, owner: str = "entry me") -> None:
        for first, _end in self.cuts:
            self.engine.close_sequence(api.CloseSequence(session=f"{name}.{first}", left=api.Left(owner, f"{name}.{first}")))

    def through(self, name: str, position: int, tokens: list[int]) -> int:
        """The token after `tokens`."""
        hidden: bytes | None = None
        for at, (first, _end) in enumerate(self.cuts):
            step = api.Step(session=f"{name}.{first}", epoch=0, position=position, count=len(tokens))
            step.tokens, step.hidden = (tokens, None) if at == 0 else (None, hidden)
            done = computed(self.engine, step)
            if isinstance(done, MfError):
                raise done
            self.rows[at] += len(tokens)
            hidden = done.hidden
        assert isinstance(done.token, int)
        return done.token

    def reply(self, name: str, prompt: list[int], there: int = 0, count: int = 8) -> list[int]:
        """`there` positions of the prompt aren't sent."""
        made = [self.through(name, there, prompt[there:])]
        while len(made) < count:
            made.append(self.through(name, len(prompt) + len(made) - 1, made[-1:]))
        return made


def fresh(folder: Path, cuts: list[tuple[int, int]], prompt: list[int], **more: Any) -> list[int]:
    folder.mkdir()
    stages = Stages(folder, cuts, **more)
    stages.open("fresh")
    return stages.reply("fresh", prompt)


@pytest.mark.parametrize("cuts", CUTS)
def test_a_second_turn_is_exactly_a_fresh_one_and_computes_the_new_part(cuts: list[tuple[int, int]], tmp_path: Path) -> None:
    stages = Stages(tmp_path, cuts)
    assert stages.open("one") == [0] * len(cuts)
    made = stages.reply("one", HISTORY)
    stages.close("one")
    assert stages.engine.usage().left > 0
    had, prompt = len(HISTORY) + 7, [*HISTORY, *made, *QUESTION]
    assert stages.open("two", "one", had) == [had] * len(cuts)
    assert stages.engine.usage().left == 0
    stages.rows = [0] * len(cuts)
    assert stages.reply("two", prompt, had) == fresh(tmp_path / "fresh", cuts, prompt)
    assert stages.rows == [1 + len(QUESTION) + 7] * len(cuts)
    assert all(one.reused == had for one in stages.engine.usage().stages or [])


@pytest.mark.parametrize("start", [0, 1, 20, 40])
def test_the_first_step_may_begin_below_what_is_there(start: int, tmp_path: Path) -> None:
    """Another stage of the route had less; the tokens from there on are sent again."""
    stages = Stages(tmp_path, CUTS[1])
    stages.open("one")
    stages.reply("one", HISTORY)
    stages.close("one")
    prompt = [*HISTORY[:40], *QUESTION]
    assert stages.open("two", "one", 40) == [40, 40]
    assert stages.reply("two", prompt, start) == fresh(tmp_path / "fresh", CUTS[1], prompt)


def test_only_the_first_step_may(tmp_path: Path) -> None:
    stages = Stages(tmp_path, CUTS[0])
    stages.open("one")
    stages.reply("one", HISTORY)
    stages.close("one")
    stages.open("two", "one", 40)
    stages.through("two", 40, QUESTION)
    with pytest.raises(Conflict):
        stages.through("two", 10, QUESTION)
    stages.open("three", "two", 40)
    with pytest.raises(Conflict):
        stages.through("three", 41, QUESTION)


@pytest.mark.parametrize(("owner", "name"), [("entry you", "one"), ("entry me", "two"), ("", "one")])
def test_nobody_else_meets_it(owner: str, name: str, tmp_path: Path) -> None:
    stages = Stages(tmp_path, CUTS[1])
    stages.open("one")
    stages.reply("one", HISTORY)
    stages.close("one")
    assert stages.open("x", name, 40, owner=owner) == [0, 0]


def test_a_reply_made_here_and_a_stage_never_meet(tmp_path: Path) -> None:
    """Each finds what it left in its own way."""
    stages = Stages(tmp_path, CUTS[0])
    stages.open("one")
    stages.reply("one", HISTORY)
    stages.close("one", owner="me")
    ends: list[Any] = []
    for reader in ("me", "entry me"):
        asked = api.Generate(
            stage="0", session="g", tokens=HISTORY, tokens_max=70, new_max=2, stop_tokens=[], sampling=Sampling(), reader=reader
        )
        stages.engine.generate(asked, ends.append)
        while stages.engine.working:
            stages.engine.step()
    assert [end.reused for end in ends] == [0, 0]


def test_switched_off_nothing_is_kept(tmp_path: Path) -> None:
    stages = Stages(tmp_path, CUTS[1], reuse=False)
    stages.open("one")
    stages.reply("one", HISTORY)
    stages.close("one")
    assert stages.engine.usage().left == 0
    assert stages.open("two", "one", 40) == [0, 0]


def test_what_is_kept_goes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = Stages(tmp_path, CUTS[1])
    stages.open("one")
    stages.reply("one", HISTORY)
    stages.close("one")
    assert stages.engine.usage().left > 0
    now = stages.engine.now()
    monkeypatch.setattr(stages.engine, "now", lambda: now + KEPT_SECONDS)
    assert stages.engine.usage().left == 0


@pytest.mark.parametrize("positions", [-1, 200])
def test_positions_that_cannot_be_are_refused(positions: int, tmp_path: Path) -> None:
    stages = Stages(tmp_path, CUTS[0])
    with pytest.raises(BadInput, match="to take over"):
        stages.open("two", "one", positions)
    assert stages.engine.usage().sequences == 0


@pytest.mark.parametrize("kind", ["mistral, window", "gemma2", "qwen3"])
def test_windows_are_gone_on_from_only_where_they_can_be_cut(kind: str, tmp_path: Path) -> None:
    config = tiny_config() | KINDS[kind]
    stages = Stages(tmp_path, CUTS[1], config)
    stages.open("one")
    made = stages.reply("one", HISTORY)
    stages.close("one")
    had, prompt = len(HISTORY) + 7, [*HISTORY, *made, *QUESTION]
    there = min(stages.open("two", "one", had))
    assert there in (0, had)
    assert stages.reply("two", prompt, there) == fresh(tmp_path / "fresh", CUTS[1], prompt, config=config)
