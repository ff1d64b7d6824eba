"""Stages in llama.cpp behind the engine: steps, guesses, epochs, whole replies, the sandboxed worker, and every way back to torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from node.worker import Worker
from protocol.errors import Busy, Unavailable
from protocol.messages import Sampling
from runtime import interface as api
from runtime.engine import Engine
from runtime.model_runner import Reserving
from tests.runtime.support import config_bytes, lay_out, load_message, stored_tensors, tiny_config, tiny_model
from tests.runtime.test_engine import engine_with

CONFIG = tiny_config(max_position_embeddings=1024)
PROMPT = [5, 9, 77, 30, 2, 64, 3, 8]


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return stored_tensors(tiny_model(CONFIG))


def load(into: Engine, tensors: dict[str, torch.Tensor], first: int = 0, end: int = 6, **changes: Any) -> api.StageLoaded:
    fd, places, length = lay_out(tensors)
    message = load_message(places, length, first, end, 6)
    for name, value in changes.items():
        setattr(message, name, value)
    try:
        return into.load_stage(message, [fd])
    finally:
        os.close(fd)


class Asker:
    """One session of a stage, as the node would step it."""

    def __init__(self, engine: Engine, stage: str) -> None:
        self.engine, self.stage = engine, stage
        engine.open_sequence(api.OpenSequence(stage=stage, session=stage, tokens_max=200, sampling=Sampling(temperature=0.0)))

    def step(self, position: int, epoch: int = 0, **given: Any) -> api.Stepped:
        answers: list[Any] = []
        self.engine.take_step(api.Step(session=self.stage, epoch=epoch, position=position, **given), answers.append)
        while self.engine.working:
            self.engine.step()
        (answer,) = answers
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, api.Stepped)
        return answer

    def greedy(self, tokens: list[int], count: int, position: int = 0, epoch: int = 0) -> list[int]:
        made: list[int] = []
        given = tokens
        while len(made) < count:
            token = self.step(position, epoch, tokens=given, count=len(given)).token
            assert token is not None
            position, given = position + len(given), [token]
            made.append(token)
        return made


def asker(folder: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> tuple[Asker, api.StageLoaded]:
    engine = engine_with(folder, CONFIG)
    told = load(engine, tensors, stage="s", engine="llama", **changes)
    return Asker(engine, "s"), told


@pytest.mark.parametrize("precision", ["bf16", "q8_0", "q4_1"])
def test_a_whole_model_runs_by_llama_and_says_so(precision: str, tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    one, told = asker(tmp_path, tensors, precision=precision)
    assert (told.engine, told.why, told.runs, told.goes_back) == ("llama", "--engine llama", precision, True)
    assert "llama.cpp: 12 tokens within" in told.self_test
    assert not list(tmp_path.rglob("*.gguf"))
    assert len(one.greedy(PROMPT, 12)) == 12
    one.engine.unload(api.Unload(stage="s"))
    assert one.engine.usage().weights == 0


def test_guesses_epochs_and_repeats_give_the_same_tokens(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    one, _ = asker(tmp_path, tensors)
    made = one.greedy(PROMPT, 10)
    end = len(PROMPT)
    right = one.step(end, 1, tokens=[*made[:4], 99], count=5, guessed=4)
    assert [right.token, *(right.more or [])] == made[1:5]
    assert one.step(end, 1, tokens=[*made[:4], 99], count=5, guessed=4).token == made[1]
    assert one.step(end + 4, 1, tokens=[made[4]], count=1).token == made[5]
    assert one.greedy(PROMPT, 10, 0, 2) == made


def test_three_stages_give_what_one_gives(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    whole, _ = asker(tmp_path, tensors)
    made = whole.greedy(PROMPT, 16)
    engine = engine_with(tmp_path / "cut", CONFIG)
    stages = []
    for first, end in ((0, 2), (2, 4), (4, 6)):
        held = {
            name: tensor
            for name, tensor in tensors.items()
            if (".layers." in name and first <= int(name.split(".")[2]) < end) or (".layers." not in name and (first == 0 or end == 6))
        }
        assert load(engine, held, first, end, stage=str(first), engine="llama").engine == "llama"
        stages.append(Asker(engine, str(first)))
    position, given, got = 0, PROMPT, list[int]()
    while len(got) < 16:
        out = stages[0].step(position, tokens=given, count=len(given))
        for stage in stages[1:]:
            assert out.hidden is not None
            out = stage.step(position, hidden=out.hidden, count=len(given))
        assert out.token is not None
        position, given = position + len(given), [out.token]
        got.append(out.token)
    assert got == made


def test_a_whole_reply_is_made_in_the_worker(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    one, _ = asker(tmp_path, tensors)
    made = one.greedy(PROMPT, 12)
    notes: list[api.Made] = []
    one.engine._news.tell = notes.extend
    ended: list[Any] = []
    asked = api.Generate(
        stage="s", session="whole", tokens=PROMPT, tokens_max=100, new_max=12, stop_tokens=[], sampling=Sampling(temperature=0.0)
    )
    one.engine.generate(asked, ended.append)
    while one.engine.working:
        one.engine.step()
    assert ended[0].finish == "length"
    assert [token for note in notes for token in note.tokens] == made


def test_an_audit_gets_gaps_and_no_rows_before_the_head(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    one, _ = asker(tmp_path, tensors)
    made = one.greedy(PROMPT, 1)
    again = one.step(0, 1, tokens=PROMPT, count=len(PROMPT), check=[api.UNCHECKED] * 7 + made, tail=True)
    assert again.gaps is not None
    assert again.gaps[-1] == 0.0
    assert again.hidden is None


@pytest.mark.parametrize(
    ("precision", "runs", "reason"),
    [("q8_0", "int8", "int8 in place of q8_0: llama.cpp: "), ("q4_1", "int4", "int4 in place of q4_1: "), ("bf16", "bf16", "llama.cpp: ")],
)
def test_without_the_library_torch_runs_as_many_bits(
    precision: str, runs: str, reason: str, tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.llama.library.WHEEL", "no-such-wheel")
    one, told = asker(tmp_path, tensors, precision=precision)
    assert (told.engine, told.runs) == ("torch", runs)
    assert told.why.startswith(reason)
    assert "isn't installed" in told.why
    assert len(one.greedy(PROMPT, 3)) == 3


def test_a_stage_that_torch_runs_instead_takes_and_gives_what_llama_would(
    tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {name: tensor for name, tensor in tensors.items() if ".layers.2." in name or ".layers.3." in name}
    rows = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).numpy().tobytes()
    outs = []
    for engine in ("llama", "torch"):
        one = engine_with(tmp_path / engine, CONFIG)
        told = load(one, held, 2, 4, stage="s", engine=engine, precision="q8_0")
        assert (told.engine, told.goes_back) == (engine, True)
        out = Asker(one, "s").step(0, hidden=rows, count=8)
        assert (out.dtype, out.shape) == ("fp32", [8, 64])
        outs.append(torch.frombuffer(bytearray(out.hidden or b""), dtype=torch.float32))
    assert float((outs[0] - outs[1]).norm() / outs[0].norm()) < 0.05


def test_a_self_test_that_differs_leaves_it_to_torch(
    tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.llama.engine.ALLOWED", {"bf16": 1e-6})
    _, told = asker(tmp_path, tensors)
    assert told.engine == "torch"
    assert "spreads off" in told.why
    assert "run lean" in told.self_test


def test_an_architecture_without_a_form_is_torchs(tmp_path: Path) -> None:
    config = tiny_config(model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"])
    engine = engine_with(tmp_path, config)
    told = load(engine, stored_tensors(tiny_model(config)), stage="s", engine="llama")
    assert (told.engine, told.why) == ("torch", "llama.cpp isn't given models of type 'gpt_neox' here")


async def test_the_sandboxed_worker_loads_it_and_a_death_is_told(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The library, its threads and its file of weights within the sandbox."""
    worker = Worker(tmp_path / "scratch", threads=2, memory=50_000_000)
    fd, places, length = lay_out(tensors)
    try:
        from bootstrap.demo_model import demo_model
        from tests.runtime.support import model_files

        files = model_files(demo_model()) | {"config.json": config_bytes(CONFIG)}
        await worker.load_text(api.LoadText(model="m", files=files))
        message = load_message(places, length, 0, 6, 6, "q8_0")
        message.engine = "auto"
        told = await worker.load_stage(message, [fd])
        assert (told.engine, told.runs, told.why) == ("llama", "q8_0", "q8_0 is llama.cpp's own")
        await worker.open_sequence(api.OpenSequence(stage=message.stage, session="s", tokens_max=64, sampling=Sampling()))
        answer = await worker.step(api.Step(session="s", epoch=0, position=0, tokens=PROMPT, count=8))
        assert answer.token is not None
        assert worker.pid is not None
        os.kill(worker.pid, 11)
        with pytest.raises(Unavailable, match="SIGSEGV"):
            await worker.step(api.Step(session="s", epoch=0, position=8, tokens=[1], count=1))
    finally:
        os.close(fd)
        await worker.stop()


def test_a_crowd_of_short_sessions_stays_within_memory(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Each has 256 positions at least, places come in steps, and a context that grows has the old one beside it: all that is charged."""
    memory = 16_000_000
    made = engine_with(tmp_path, CONFIG, memory)
    told = load(made, tensors, engine="llama")
    assert told.engine == "llama", told.why
    runner = made._stages["0-6-bf16"].runner
    assert isinstance(runner, Reserving)

    def taken() -> int:
        return told.bytes + made._room.activations + runner.reserved_bytes + sum(sorted(runner.scratch)[:-1])

    def open_one(name: str, positions: int) -> bool:
        given = api.OpenSequence(stage="0-6-bf16", session=name, tokens_max=positions, sampling=Sampling())
        try:
            made.open_sequence(given)
        except Busy:
            return False
        assert taken() <= memory
        return True

    opened = [f"s{number}" for number in range(300) if open_one(f"s{number}", 5 + number % 40)]
    assert 2 <= len(opened) < 300
    assert made.usage().kv >= runner.reserved_bytes
    for name in opened:
        made.close_sequence(api.CloseSequence(session=name))
    assert open_one("long", 1000)
    assert {positions for positions, bucket in runner._buckets.items() if bucket.slots} == {1024}  # type: ignore[attr-defined]
