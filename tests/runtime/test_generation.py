"""Replies made in the worker: the same whoever else is there, however they are guessed, whatever was there before."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import BadInput, Busy, MfError
from protocol.messages import LogitBias, Sampling
from runtime import interface as api
from runtime.engine import Engine
from tests.runtime.support import stored_tensors, tiny_config, tiny_model
from tests.runtime.test_engine import engine_with, load

STAGE = "0-6-fp32"


class Asker:
    """Asks an engine and keeps what it says."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.made: dict[str, list[int]] = {}
        self.ends: dict[str, api.Generated | MfError] = {}
        engine._news.tell = self._take

    def ask(self, session: str, tokens: list[int], sampling: Sampling | None = None, new_max: int = 12, **more: Any) -> None:
        asked = api.Generate(
            stage=STAGE,
            session=session,
            tokens=tokens,
            tokens_max=len(tokens) + new_max,
            new_max=new_max,
            stop_tokens=[],
            sampling=sampling or Sampling(),
            **more,
        )
        self.made[session] = []
        self.engine.generate(asked, lambda end: self.ends.__setitem__(session, end))

    def run(self) -> None:
        while self.engine.working:
            self.engine.step()

    def reply(self, tokens: list[int], sampling: Sampling | None = None, **more: Any) -> list[int]:
        self.ask("one", tokens, sampling, **more)
        self.run()
        assert isinstance(self.ends["one"], api.Generated)
        return self.made["one"]

    def _take(self, notes: list[api.Made]) -> None:
        for note in notes:
            self.made[note.session] += note.tokens


def make(folder: Path, memory: int = 50_000_000, precision: str = "fp32", **changes: Any) -> Engine:
    config = tiny_config()
    made = engine_with(folder, config, memory, **changes)
    load(made, stored_tensors(tiny_model(config)), stage=STAGE, precision=precision)
    return made


@pytest.fixture
def asker(tmp_path: Path) -> Asker:
    return Asker(make(tmp_path))


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(128) for _ in range(rng.randrange(1, 60))] for _ in range(count)]


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=1.0, seed=7),
    Sampling(temperature=1.5, top_p=0.9, top_k=40, seed=1 << 60, frequency_penalty=0.5),
    Sampling(repetition_penalty=1.3, logit_bias=[LogitBias(5, 2.0)]),
]


def test_a_reply_is_the_same_whoever_else_is_there(asker: Asker) -> None:
    given = prompts(12)
    alone = [asker.reply(prompt, SAMPLINGS[number % 4]) for number, prompt in enumerate(given)]
    for number, prompt in enumerate(given):
        asker.ask(str(number), prompt, SAMPLINGS[number % 4], account=str(number % 3))
        if number % 3 == 0:
            asker.engine.step()
    asker.run()
    assert [asker.made[str(number)] for number in range(12)] == alone
    assert all(isinstance(end, api.Generated) and (end.finish, end.made) == ("length", 12) for end in asker.ends.values())
    assert asker.engine.usage().kv == 0


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_guesses_change_nothing_but_the_passes(sampling: Sampling, asker: Asker) -> None:
    prompt = [1, 2, 3, 4, 5, 6] * 5
    wanted = asker.reply(prompt, sampling, new_max=60, drafts=False, reader="a")
    assert asker.reply(prompt, sampling, new_max=60, reader="b") == wanted
    end = asker.ends["one"]
    assert isinstance(end, api.Generated)
    if sampling.temperature == 0 and sampling.repetition_penalty == 1:
        assert end.right > 10
        assert end.passes < 50


def test_a_prompt_that_begins_alike_is_not_computed_again(asker: Asker) -> None:
    prompt = list(range(1, 61))
    other = [*prompt, 9, 9, 8]
    wanted = asker.reply(other, reader="x")
    asker.reply(prompt, reader="me")
    assert asker.reply(other, reader="me") == wanted
    assert _end(asker).reused >= 60
    assert asker.reply(other, reader="you") == wanted
    assert _end(asker).reused == 0


def test_reuse_can_be_switched_off(tmp_path: Path) -> None:
    asker = Asker(make(tmp_path, reuse=False))
    for _ in range(2):
        asker.reply(list(range(1, 61)))
        assert _end(asker).reused == 0
    assert asker.engine.usage().left == 0


def test_a_replay_goes_on_as_the_reply_would_have(asker: Asker) -> None:
    sampling = Sampling(temperature=1.2, seed=4, presence_penalty=1.5)
    wanted = asker.reply([1, 2, 3], sampling, new_max=20)
    again = asker.reply([1, 2, 3, *wanted[:8]], sampling, new_max=12, reply=wanted[:8])
    assert again == wanted[8:]


def test_a_stop_token_ends_the_reply_and_is_its_last(asker: Asker) -> None:
    wanted = asker.reply([1, 2, 3])
    asker.ask("stopped", [1, 2, 3])
    generation, _account = asker.engine._replies["stopped"]
    generation._asked.stop_tokens = [wanted[4]]
    asker.run()
    assert asker.made["stopped"] == wanted[: wanted.index(wanted[4]) + 1]
    assert _end(asker, "stopped").finish == "stop"


def test_one_that_leaves_gives_its_room_back_before_the_next_pass(asker: Asker) -> None:
    wanted = asker.reply([4, 5, 6])
    for name in ("stays", "leaves", "waits"):
        asker.ask(name, [4, 5, 6])
    for _ in range(4):
        asker.engine.step()
    before = asker.engine.usage().kv
    asker.engine.close_sequence(api.CloseSequence(session="leaves"))
    assert asker.engine.usage().kv == before * 2 // 3
    asker.run()
    assert asker.made["stays"] == asker.made["waits"] == wanted
    assert "leaves" not in asker.ends


def test_steps_of_pipelines_and_replies_share_passes(asker: Asker) -> None:
    wanted = asker.reply([7, 8, 9], new_max=6)
    asker.ask("reply", [7, 8, 9], new_max=6)
    asker.engine.open_sequence(api.OpenSequence(stage=STAGE, session="s", tokens_max=20, sampling=Sampling()))
    made, tokens, position = [], [7, 8, 9], 0
    for _ in range(6):
        answers: list[Any] = []
        asker.engine.take_step(api.Step(session="s", epoch=0, position=position, tokens=tokens, count=len(tokens)), answers.append)
        while not answers:
            asker.engine.step()
        position += len(tokens)
        tokens = [answers[0].token]
        made += tokens
    asker.run()
    assert made == asker.made["reply"] == wanted


def test_a_pass_that_fails_fails_those_in_it_alone(asker: Asker) -> None:
    wanted = asker.reply([1, 2, 3])
    runner: Any = asker.engine._stages[STAGE].runner
    run = runner.run

    def breaks(rows: list[Any], hidden: Any) -> Any:
        if rows[0].tokens == [66]:
            raise RuntimeError("a secret prompt")
        return run(rows, hidden)

    runner.run = breaks
    asker.ask("good", [1, 2, 3])
    asker.ask("bad", [66])
    asker.run()
    assert asker.made["good"] == wanted
    end = asker.ends["bad"]
    assert isinstance(end, MfError)
    assert end.message == "the worker failed in a pass: RuntimeError"
    assert asker.engine.usage().kv == 0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=7), Sampling(repetition_penalty=1.3, logprobs=2)])
def test_logits_that_are_none_never_become_a_token(sampling: Sampling, number: float, tmp_path: Path) -> None:
    """In one pass with others: theirs are as they would be, and a step of a pipeline fails as a reply does."""
    asker = Asker(make(tmp_path, precision="bf16"))
    wanted = asker.reply([1, 2, 3], sampling)
    runner: Any = asker.engine._stages[STAGE].runner
    run = runner.run

    def breaks(rows: list[Any], hidden: Any) -> Any:
        logits, at = run(rows, hidden).clone(), 0
        for row in rows:
            at += row.logits
            if row.logits and row.slot != first:
                logits[at - 1, 77] = number
        return logits

    runner.run = breaks
    asker.ask("good", [1, 2, 3], sampling)
    first = asker.engine._sequences["good"].slot
    asker.ask("bad", [66, 67], sampling)
    asker.engine.open_sequence(api.OpenSequence(stage=STAGE, session="s", tokens_max=20, sampling=sampling))
    answers: list[Any] = []
    asker.engine.take_step(api.Step(session="s", epoch=0, position=0, tokens=[66], count=1), answers.append)
    asker.run()
    assert (asker.made["good"], asker.made["bad"]) == (wanted, [])
    for end in (asker.ends["bad"], answers[0]):
        assert isinstance(end, MfError)
        assert end.message == "the model gave logits that aren't numbers"
    asker.engine.close_sequence(api.CloseSequence(session="s"))
    assert asker.engine.usage().kv == 0


def test_a_logit_of_minus_infinity_is_one(asker: Asker) -> None:
    """Some models forbid tokens so."""
    wanted = asker.reply([1, 2, 3])
    runner: Any = asker.engine._stages[STAGE].runner
    run = runner.run

    def forbids(rows: list[Any], hidden: Any) -> Any:
        logits = run(rows, hidden).clone()
        logits[:, next(token for token in range(128) if token not in wanted)] = float("-inf")
        return logits

    runner.run = forbids
    assert asker.reply([1, 2, 3]) == wanted


def test_an_unloaded_stage_ends_its_replies(asker: Asker) -> None:
    asker.ask("one", [1, 2, 3])
    asker.engine.step()
    asker.engine.unload(api.Unload(stage=STAGE))
    assert isinstance(asker.ends["one"], MfError)
    assert not asker.engine.working
    assert asker.engine.usage().kv == asker.engine.usage().weights == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": []}, "at least one"),
        ({"tokens": [128]}, r"0\.\.127"),
        ({"tokens": [1, -1]}, r"0\.\.127"),
        ({"new_max": 0}, "0 new tokens"),
        ({"new_max": 300}, "takes 256"),
        ({"sampling": Sampling(temperature=-1.0)}, "temperature"),
        ({"sampling": Sampling(logit_bias=[LogitBias(128, 1.0)])}, "logit_bias"),
    ],
)
def test_nonsense_is_refused_and_leaves_nothing(change: dict[str, Any], said: str, asker: Asker) -> None:
    with pytest.raises(BadInput, match=said):
        asker.ask(**({"session": "s", "tokens": [1]} | change))
    assert asker.engine.usage().sequences == asker.engine.usage().kv == 0


def test_a_full_pool_is_busy_until_someone_ends(tmp_path: Path) -> None:
    asker = Asker(make(tmp_path))
    one = asker.engine._stages[STAGE].runner.token_bytes * 100  # type: ignore[union-attr]
    asker.engine._room._memory = asker.engine.usage().weights + asker.engine.usage().activations + 2 * one
    for name in ("a", "b"):
        asker.ask(name, [1, 2], new_max=98)
    with pytest.raises(Busy, match="no room for this sequence"):
        asker.ask("c", [1, 2], new_max=98)
    asker.run()
    asker.ask("c", [1, 2], new_max=98)


def _end(asker: Asker, session: str = "one") -> api.Generated:
    end = asker.ends[session]
    assert isinstance(end, api.Generated)
    return end


def test_each_stage_counts_for_itself(asker: Asker) -> None:
    asker.reply(list(range(1, 61)), reader="me")
    asker.reply(list(range(1, 61)), reader="me")
    asker.ask("waits", [1, 2, 3], reader="you")
    [told] = asker.engine.usage().stages or []
    whole = asker.engine.usage()
    assert (told.stage, told.sequences, told.waiting) == (STAGE, 1, 1)
    assert (told.kv, told.left, told.passes, told.rows, told.reused) == (whole.kv, whole.left, whole.passes, whole.rows, whole.reused)
    assert told.kv > 0 < told.left
    assert told.reused >= 59
    asker.engine.unload(api.Unload(stage=STAGE))
    assert asker.engine.usage().stages == []
