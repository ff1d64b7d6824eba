from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.messages import Sampling
from runtime.sampler import sample

LOGITS = torch.tensor([0.0, 3.0, 1.0, 2.9, -5.0])


def draws(sampling: Sampling, count: int = 300) -> set[int]:
    return {sample(LOGITS, sampling, 1, position) for position in range(count)}


def test_greedy_takes_the_greatest() -> None:
    assert sample(LOGITS, Sampling(), 1, 0) == 1


def test_same_seed_and_position_give_the_same_token() -> None:
    hot = Sampling(temperature=2.0)
    assert [sample(LOGITS, hot, 9, at) for at in range(50)] == [sample(LOGITS, hot, 9, at) for at in range(50)]
    assert len(draws(hot)) >= 4


def test_top_k_keeps_the_k_likeliest() -> None:
    assert draws(Sampling(temperature=5.0, top_k=2)) == {1, 3}


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    assert draws(Sampling(temperature=1.0, top_p=0.6)) == {1, 3}
    assert draws(Sampling(temperature=1.0, top_p=0.0)) == {1}


@settings(max_examples=30, deadline=None)
@given(
    st.floats(0.01, 10),
    st.floats(0, 1),
    st.integers(0, 10),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.integers(0, 1 << 31),
)
def test_always_a_token_of_the_vocabulary(temperature: float, top_p: float, top_k: int, seed: int, position: int) -> None:
    assert 0 <= sample(LOGITS, Sampling(temperature=temperature, top_p=top_p, top_k=top_k), seed, position) < 5
