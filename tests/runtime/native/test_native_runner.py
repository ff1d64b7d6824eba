"""Stages by compiled kernels: as transformers gives, and every row to the last bit what it is by itself."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.errors import BadInput, Conflict
from runtime import lean_check
from runtime.lean_shape import Unlike, decoder_of
from runtime.model_runner import Row
from runtime.native import runner as native
from runtime.native.crew import Crew
from runtime.native.kernels import Run
from runtime.quantised import quantise
from runtime.runners import lean_runner
from runtime.sliced import whole
from tests.runtime.lean_kinds import KINDS, reference, stages_of, through, wanted, words

PRECISIONS = ("bf16", "int8", "int4")
KNOWN = [name for name in KINDS if "in part" not in name]
LENGTH = 90
pytestmark = pytest.mark.usefixtures("kernels_here")


def natives(folder: Path, name: str, precision: str, count: int = 1) -> list[native.NativeRunner]:
    config, model = reference(name)
    made = []
    folder.mkdir(exist_ok=True)
    for stage in stages_of(folder, config, model, count, "bf16"):
        decoder = decoder_of(stage)
        if precision != "bf16":
            quantise(stage, precision)
        made.append(whole(native.making(stage, decoder, precision)))
    return made


def alone(runners: list[Any], tokens: list[int]) -> torch.Tensor:
    """Logits, a position at a time."""
    return torch.cat([through(runners, [Row(0, at, 1, [tokens[at]], 1)]) for at in range(len(tokens))])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", KNOWN)
def test_as_transformers_gives(name: str, precision: str, tmp_path: Path) -> None:
    config, model = reference(name)
    for stage in stages_of(tmp_path, config, model, 2, "bf16"):
        runner, said = lean_runner(stage, precision)
        assert isinstance(runner, native.NativeRunner), said
        assert said.startswith("run lean by compiled kernels, as transformers gives at 40 positions")
    (own,) = natives(tmp_path / "again", name, "bf16")
    tokens = words(5, 60)
    right = wanted(model, tokens)
    assert float((own.run([Row(0, 0, 60, tokens, 60)], None) - right).norm() / right.norm()) < 0.02


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", KNOWN)
def test_cuts_company_and_pieces_change_no_bit(name: str, precision: str, tmp_path: Path) -> None:
    (one,) = natives(tmp_path / "one", name, precision)
    tokens = words(1, LENGTH)
    right = alone([one], tokens)
    one.release(0)
    at = 0
    for piece in (7, 1, 30, 33, 19):
        assert torch.equal(one.run([Row(0, at, piece, tokens[at : at + piece], piece)], None), right[at : at + piece])
        at += piece
    assert torch.equal(alone(natives(tmp_path / "three", name, precision, 3), tokens), right)
    one.release(0)
    others = [Row(slot, 0, 40, words(slot, 40), 2) for slot in range(1, 4)]  # more rows than one call takes
    beside = one.run([*others[:2], Row(0, 0, LENGTH, tokens, LENGTH), others[2]], None)
    assert torch.equal(beside[4 : 4 + LENGTH], right)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", KNOWN)
def test_a_row_by_itself_goes_a_shorter_way_to_the_same_bits(name: str, precision: str, tmp_path: Path) -> None:
    tokens = words(2, 12)
    (one,) = natives(tmp_path / "one", name, precision)
    right = alone([one], tokens)
    parts = natives(tmp_path / "parts", name, precision, 3)
    for at, token in enumerate(tokens):
        hidden = None
        for runner in parts:
            wants = int(at % 3 < 2 and runner is parts[-1])
            made = runner.run_one(Row(0, at, 1, [token] if runner is parts[0] else None, wants), hidden)
            hidden = made.rows.clone()
        if wants:
            assert torch.equal(made.rows, right[at : at + 1])
            assert (made.array == made.rows.numpy()).all()
    with pytest.raises(Conflict):
        one.run_one(Row(0, 14, 1, [3], 1), None)
    for runner, hidden in ((parts[1], None), (parts[1], torch.zeros(2, one.hidden)), (parts[0], None)):
        with pytest.raises(BadInput):
            runner.run_one(Row(0, 12, 1, None, 0), hidden)
    with pytest.raises(IndexError):
        parts[0].run_one(Row(0, 12, 1, [one.vocabulary], 0), None)


def test_hidden_states_of_another_kind_are_made_what_they_should_be(tmp_path: Path) -> None:
    _, last = natives(tmp_path, "llama", "bf16", 2)
    wide = torch.randn(last.hidden, 2)[:, :1].t().bfloat16()
    right = last.run_one(Row(0, 0, 1, None, 1), wide.contiguous()).rows.clone()
    last.release(0)
    assert torch.equal(last.run_one(Row(0, 0, 1, None, 1), wide.float()).rows, right)
    last.release(0)
    assert torch.equal(last.run([Row(0, 0, 1, None, 1)], wide), right)


def test_a_row_says_whether_it_is_all_numbers(tmp_path: Path) -> None:
    first, _ = natives(tmp_path, "llama", "bf16", 2)
    middle = natives(tmp_path / "three", "llama", "bf16", 3)[1]
    assert first.run_one(Row(0, 0, 1, [4], 0), None).finite
    for wrong in (float("nan"), float("inf")):
        hidden = torch.ones(1, middle.hidden, dtype=torch.bfloat16)
        assert middle.run_one(Row(0, 0, 1, None, 0), hidden).finite
        middle.release(0)
        hidden[0, 5] = wrong
        made = middle.run_one(Row(0, 0, 1, None, 0), hidden)
        assert not made.finite
        assert not made.rows.isfinite().all()
        middle.release(0)


def test_threads_change_no_bit(run: Run, tmp_path: Path) -> None:
    (runner,) = natives(tmp_path, "llama", "int4")
    tokens = words(2, 40)
    right = alone([runner], tokens)
    for threads in (1, 2, 5):
        runner._team = Crew(run, threads)
        runner._rooms = native._Rooms(runner._rooms._widths, threads)
        runner.release(0)
        assert torch.equal(alone([runner], tokens), right)
        runner._team.stop()


def test_a_crowd_of_passes_with_helpers_that_come_and_go(kernels_here: Crew, tmp_path: Path) -> None:
    """Rings are taken again and again; two stages share the threads."""
    runners = natives(tmp_path, "qwen2", "int8", 2)
    tokens = words(3, 12)
    right = alone(runners, tokens)
    for _ in range(60):
        for runner in runners:
            runner.release(0)
        assert torch.equal(alone(runners, tokens), right)


def test_a_stage_may_go_while_a_helper_still_leaves_its_last_pass(kernels_here: Crew, tmp_path: Path) -> None:
    (runner,) = natives(tmp_path, "llama", "bf16")
    tokens = words(3, 12)
    plan = weakref.ref(runner._plan)
    alone([runner], tokens)
    del runner
    gc.collect()
    assert plan() is not None, "a late helper reads it"


def test_a_head_that_is_the_embedding_goes_where_that_goes(tmp_path: Path) -> None:
    """Nothing of what it came on is kept: a loaded stage lets that go."""
    (runner,) = natives(tmp_path, "llama, tied, biases", "bf16")
    tokens = words(4, 9)
    right = alone([runner], tokens)
    embedding = runner.kept[0]
    came = weakref.ref(embedding.weight)
    embedding._parameters["weight"] = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    gc.collect()
    assert came() is None
    runner.release(0)
    assert torch.equal(alone([runner], tokens), right)


def test_only_what_is_asked_for_comes_back(tmp_path: Path) -> None:
    first, last = natives(tmp_path, "llama", "bf16", 2)
    tokens = words(4, 9)
    hidden = first.run([Row(0, 0, 5, tokens[:5], 0), Row(1, 0, 4, tokens[5:], 0)], None)
    assert hidden.shape == (9, 64)
    assert hidden.dtype == torch.bfloat16
    last.keep_tails = True
    rows = [Row(0, 0, 5, None, 2), Row(1, 0, 4, None, 0)]
    logits = last.run(rows, hidden)
    assert logits.shape == (2, 128)
    assert [one.shape for one in last.tails] == [(5, 64), (4, 64)]
    assert last.run([Row(1, 4, 1, None, 0)], hidden[:1]).shape == (0, 128)


def test_going_back_and_on_again(tmp_path: Path) -> None:
    (runner,) = natives(tmp_path, "gemma2", "bf16")
    tokens, other = words(1, 70), words(2, 20)
    right = alone([runner], tokens[:50] + other)[50:]
    runner.release(0)
    runner.run([Row(0, 0, 60, tokens[:60], 0)], None)
    runner.crop(0, 50)
    assert torch.equal(runner.run([Row(0, 50, 20, other, 20)], None), right)
    with pytest.raises(Conflict, match="slot 0 holds 70 positions"):
        runner.crop(0, 71)
    with pytest.raises(Conflict, match="can't take 1 positions from 72 on"):
        runner.run([Row(0, 72, 1, [3], 1)], None)


def test_a_pass_says_what_it_was_not_given(tmp_path: Path) -> None:
    first, last = natives(tmp_path, "llama", "bf16", 2)
    with pytest.raises(BadInput, match="tokens go to the first stage"):
        first.run([Row(0, 0, 2, [1], 0)], None)
    for wrong in (torch.zeros(1, 64), torch.zeros(2, 63)):
        with pytest.raises(BadInput, match="hidden states go to a later stage"):
            last.run([Row(0, 0, 2, None, 1)], wrong)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_no_number_stays_none(precision: str, tmp_path: Path) -> None:
    first, last = natives(tmp_path, "llama", precision, 2)
    hidden = first.run([Row(0, 0, 4, words(1, 4), 0)], None).clone()
    hidden[2, 5] = float("nan")
    found = last.run([Row(0, 0, 4, None, 4)], hidden)
    assert found[:2].isfinite().all()
    assert not found[2:].isfinite().any()


@pytest.mark.parametrize("name", ["phi3, rotary in part"])
def test_what_the_kernels_cant_do_torch_does(name: str, tmp_path: Path) -> None:
    config, model = reference(name)
    (stage,) = stages_of(tmp_path, config, model, 1, "bf16")
    with pytest.raises(Unlike, match="can't turn its heads"):
        whole(native.making(stage, decoder_of(stage), "bf16"))
    runner, said = lean_runner(stage, "bf16")
    assert runner is not None
    assert not isinstance(runner, native.NativeRunner)
    assert said.startswith("run lean, as transformers gives")


def test_kernels_that_give_something_else_arent_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = reference("llama")
    (stage,) = stages_of(tmp_path, config, model, 1, "bf16")
    plan = native._plan

    def wrong(*given: Any) -> Any:
        made = plan(*given)
        made[native.f.EPS] = native._bits(1.0)
        return made

    monkeypatch.setattr(native, "_plan", wrong)
    runner, said = lean_runner(stage, "bf16")
    assert not isinstance(runner, native.NativeRunner), said
    with pytest.raises(Unlike, match=r"apart|differ|away"):
        lean_check.check(stage, whole(native.making(stage, decoder_of(stage), "bf16")))
