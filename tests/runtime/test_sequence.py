"""Steps are idempotent, gaps are refused, a new epoch goes back."""

from __future__ import annotations

import pytest

from protocol.errors import BadInput, Conflict
from protocol.messages import Sampling
from runtime import interface as api
from runtime.sequence import Sequence
from runtime.stage import Stage
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


def step(position: int, tokens: list[int], epoch: int = 0, **more: object) -> api.Step:
    return api.Step(session="s", epoch=epoch, position=position, tokens=tokens, count=len(tokens), **more)  # type: ignore[arg-type]


def test_a_repeated_step_is_answered_again(whole: Stage) -> None:
    sequence = Sequence(whole, 32, Sampling(temperature=1.0))
    first = sequence.step(step(0, [1, 2, 3]))
    assert sequence.step(step(0, [1, 2, 3])) is first
    assert sequence.position == 3


def test_a_gap_is_a_conflict(whole: Stage) -> None:
    sequence = Sequence(whole, 32, Sampling())
    sequence.step(step(0, [1, 2, 3]))
    with pytest.raises(Conflict, match="stands at position 3, the step begins at 5"):
        sequence.step(step(5, [1]))


def test_a_new_epoch_drops_what_lies_beyond(whole: Stage) -> None:
    straight = Sequence(whole, 32, Sampling())
    straight.step(step(0, [1, 2, 3]))
    wanted = straight.step(step(3, [9])).token
    sequence = Sequence(whole, 32, Sampling())
    sequence.step(step(0, [1, 2, 3]))
    sequence.step(step(3, [4]))
    sequence.step(step(4, [5]))
    assert sequence.step(step(3, [9], epoch=1)).token == wanted
    assert sequence.position == 4
    with pytest.raises(Conflict, match="epoch 1, the step is of 0"):
        sequence.step(step(4, [5]))


def test_a_new_epoch_can_begin_anew(whole: Stage) -> None:
    sequence = Sequence(whole, 32, Sampling())
    wanted = sequence.step(step(0, [1, 2, 3])).token
    assert sequence.step(step(0, [1, 2, 3], epoch=1)).token == wanted


def test_an_epoch_beyond_the_position_is_a_conflict(whole: Stage) -> None:
    with pytest.raises(Conflict, match="begins at 4"):
        Sequence(whole, 32, Sampling()).step(step(4, [1], epoch=1))


def test_room_is_kept(whole: Stage) -> None:
    with pytest.raises(BadInput, match="beyond the session's room of 4"):
        Sequence(whole, 4, Sampling()).step(step(0, [1, 2, 3, 4, 5]))


@pytest.mark.parametrize("tokens", [[], [-1], [128], [1 << 70]])
def test_hostile_token_ids_are_refused(tokens: list[int], whole: Stage) -> None:
    with pytest.raises(BadInput, match=r"token ids must lie in 0\.\.127"):
        Sequence(whole, 32, Sampling()).step(step(0, tokens))


def test_hidden_states_of_the_wrong_size_are_refused(middle: Stage) -> None:
    sequence = Sequence(middle, 32, Sampling())
    with pytest.raises(BadInput, match="100 bytes of hidden states for 2 positions, 256 are right"):
        sequence.step(api.Step(session="s", epoch=0, position=0, hidden=bytes(100), count=2))
    with pytest.raises(BadInput, match="tokens go to the first stage"):
        sequence.step(step(0, [1]))
    answer = sequence.step(api.Step(session="s", epoch=0, position=0, hidden=bytes(256), count=2))
    assert (answer.dtype, answer.shape, len(answer.hidden or b"")) == ("bf16", [2, 64], 256)


def test_without_sampling_the_last_stage_gives_nothing(whole: Stage) -> None:
    assert Sequence(whole, 32, Sampling()).step(step(0, [1, 2], sample=False)).token is None


def test_a_seed_makes_replays_equal(whole: Stage) -> None:
    def reply() -> list[int | None]:
        sequence = Sequence(whole, 32, Sampling(temperature=1.5, seed=11))
        return [sequence.step(step(position, [position])).token for position in range(8)]

    assert reply() == reply()
