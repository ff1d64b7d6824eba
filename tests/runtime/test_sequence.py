"""Steps are idempotent, gaps are refused, a new epoch goes back."""

from __future__ import annotations

import pytest
import torch

from protocol.errors import BadInput, Conflict
from protocol.messages import Sampling
from runtime import interface as api
from runtime.stage import Stage
from tests.runtime.alone import Alone
from tests.runtime.support import for_stage, stored_tensors, tiny_config, tiny_model
from tests.runtime.test_stage import build


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    config = tiny_config()
    return build(tmp_path_factory.mktemp("m"), config, stored_tensors(tiny_model(config)), 0, 6)


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    config = tiny_config()
    tensors = for_stage(stored_tensors(tiny_model(config)), "model.layers.", 2, 4, 6)
    return build(tmp_path_factory.mktemp("m"), config, tensors, 2, 4)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    config = tiny_config()
    return build(tmp_path_factory.mktemp("m"), config, stored_tensors(tiny_model(config)), 0, 6, "fp32")


@pytest.fixture(scope="module")
def reference_middle(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    config = tiny_config()
    tensors = for_stage(stored_tensors(tiny_model(config)), "model.layers.", 2, 4, 6)
    return build(tmp_path_factory.mktemp("m"), config, tensors, 2, 4, "fp32")


def step(position: int, tokens: list[int], epoch: int = 0, **more: object) -> api.Step:
    return api.Step(session="s", epoch=epoch, position=position, tokens=tokens, count=len(tokens), **more)  # type: ignore[arg-type]


def test_a_repeated_step_is_answered_again(whole: Stage) -> None:
    sequence = Alone(whole, 32, Sampling(temperature=1.0))
    first = sequence.step(step(0, [1, 2, 3]))
    assert sequence.step(step(0, [1, 2, 3])) is first
    assert sequence.position == 3


def test_a_gap_is_a_conflict(whole: Stage) -> None:
    sequence = Alone(whole, 32, Sampling())
    sequence.step(step(0, [1, 2, 3]))
    with pytest.raises(Conflict, match="stands at position 3, the step begins at 5"):
        sequence.step(step(5, [1]))


def test_a_new_epoch_drops_what_lies_beyond(whole: Stage) -> None:
    straight = Alone(whole, 32, Sampling())
    straight.step(step(0, [1, 2, 3]))
    wanted = straight.step(step(3, [9])).token
    sequence = Alone(whole, 32, Sampling())
    sequence.step(step(0, [1, 2, 3]))
    sequence.step(step(3, [4]))
    sequence.step(step(4, [5]))
    assert sequence.step(step(3, [9], epoch=1)).token == wanted
    assert sequence.position == 4
    with pytest.raises(Conflict, match="epoch 1, the step is of 0"):
        sequence.step(step(4, [5]))


def test_a_new_epoch_can_begin_anew(whole: Stage) -> None:
    sequence = Alone(whole, 32, Sampling())
    wanted = sequence.step(step(0, [1, 2, 3])).token
    assert sequence.step(step(0, [1, 2, 3], epoch=1)).token == wanted


def test_an_epoch_beyond_the_position_is_a_conflict(whole: Stage) -> None:
    with pytest.raises(Conflict, match="begins at 4"):
        Alone(whole, 32, Sampling()).step(step(4, [1], epoch=1))


def test_room_is_kept(whole: Stage) -> None:
    with pytest.raises(BadInput, match="beyond the session's room of 4"):
        Alone(whole, 4, Sampling()).step(step(0, [1, 2, 3, 4, 5]))


@pytest.mark.parametrize("tokens", [[], [-1], [128], [1 << 70]])
def test_hostile_token_ids_are_refused(tokens: list[int], whole: Stage) -> None:
    with pytest.raises(BadInput, match=r"token ids must lie in 0\.\.127"):
        Alone(whole, 32, Sampling()).step(step(0, tokens))


def test_hidden_states_of_the_wrong_size_are_refused(middle: Stage) -> None:
    sequence = Alone(middle, 32, Sampling())
    with pytest.raises(BadInput, match="100 bytes of hidden states for 2 positions, 256 are right"):
        sequence.step(api.Step(session="s", epoch=0, position=0, hidden=bytes(100), count=2))
    with pytest.raises(BadInput, match="tokens go to the first stage"):
        sequence.step(step(0, [1]))
    answer = sequence.step(api.Step(session="s", epoch=0, position=0, hidden=bytes(256), count=2))
    assert (answer.dtype, answer.shape, len(answer.hidden or b"")) == ("bf16", [2, 64], 256)


def test_without_sampling_the_last_stage_gives_nothing(whole: Stage) -> None:
    assert Alone(whole, 32, Sampling()).step(step(0, [1, 2], sample=False)).token is None


def test_a_seed_makes_replays_equal(whole: Stage) -> None:
    def reply() -> list[int | None]:
        sequence = Alone(whole, 32, Sampling(temperature=1.5, seed=11))
        return [sequence.step(step(position, [position])).token for position in range(8)]

    assert reply() == reply()


def test_a_long_step_is_answered_once_whatever_its_cuts(reference: Stage, middle: Stage) -> None:
    wanted = Alone(reference, 64, Sampling()).step(step(0, list(range(1, 40))))
    assert Alone(reference, 64, Sampling()).step(step(0, list(range(1, 40))), cut=7).token == wanted.token
    rows = torch.randn(20, 64).to(torch.bfloat16)
    given = api.Step(session="s", epoch=0, position=0, hidden=rows.view(torch.uint8).numpy().tobytes(), count=20)
    answer = Alone(middle, 64, Sampling()).step(given, cut=6)
    assert answer.shape == [20, 64]


def drafting(position: int, tokens: list[int], drafted: list[int]) -> api.Step:
    return step(position, [*tokens, *drafted], guessed=len(drafted))


def greedy(stage: Stage, prompt: list[int], count: int) -> list[int]:
    sequence = Alone(stage, 64, Sampling())
    made = [sequence.step(step(0, prompt)).token or 0]
    while len(made) < count:
        made.append(sequence.step(step(len(prompt) + len(made) - 1, [made[-1]])).token or 0)
    return made


def test_right_drafts_are_answered_at_once_and_wrong_ones_leave_no_trace(reference: Stage) -> None:
    prompt = [5, 6, 7, 8]
    made = greedy(reference, prompt, 8)
    sequence = Alone(reference, 64, Sampling())
    assert sequence.step(step(0, prompt)).token == made[0]
    answer = sequence.step(drafting(4, made[:1], made[1:4]))
    assert [answer.token, *(answer.more or [])] == made[1:5]
    assert sequence.position == 8
    wrong = (made[6] + 1) % 128
    answer = sequence.step(drafting(8, made[4:5], [made[5], wrong, 1]))
    assert [answer.token, *(answer.more or [])] == made[5:7]
    assert sequence.position == 10
    assert sequence.step(step(10, made[6:7])).token == made[7]


def test_a_stage_in_the_middle_goes_back_where_the_next_step_says(reference_middle: Stage) -> None:
    def given(position: int, rows: torch.Tensor, guessed: int = 0) -> api.Step:
        raw = rows.view(torch.uint8).numpy().tobytes()
        return api.Step(session="s", epoch=0, position=position, hidden=raw, count=len(rows), guessed=guessed)

    rows = torch.randn(9, 64)
    straight, guessed = Alone(reference_middle, 64, Sampling()), Alone(reference_middle, 64, Sampling())
    straight.step(given(0, rows[:4]))
    wanted = straight.step(given(4, rows[8:9])).hidden
    guessed.step(given(0, rows[:3]))
    guessed.step(given(3, rows[3:8], 4))
    answer = guessed.step(given(4, rows[8:9])).hidden
    assert torch.allclose(floats(answer), floats(wanted), atol=1e-5)
    with pytest.raises(Conflict):
        guessed.step(given(2, rows[:1]))


def floats(raw: bytes | None) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw or b""), dtype=torch.float32)


@pytest.mark.parametrize("more", [{"guessed": 3}, {"guessed": -1}, {"guessed": 40}])
def test_guesses_that_make_no_sense_are_refused(more: dict[str, int], whole: Stage) -> None:
    with pytest.raises(BadInput, match="guessed"):
        Alone(whole, 64, Sampling()).step(step(0, [1, 2, 3], **more))
