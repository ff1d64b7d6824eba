from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.messages import LogitBias, Sampling
from runtime.memory import choice_bytes
from runtime.sampler import Ask, Chosen, choose, greatest
from tests.runtime.peak import Peak

LOGITS = torch.tensor([0.0, 3.0, 1.0, 2.9, -5.0])


def one(sampling: Sampling, position: int = 0, counts: dict[int, int] | None = None, allowed: torch.Tensor | None = None) -> Chosen:
    return choose(LOGITS[None], [Ask(sampling, 1, position, counts or {}, allowed)])[0]


def draws(sampling: Sampling, count: int = 300) -> set[int]:
    asks = [Ask(sampling, 1, position) for position in range(count)]
    return {chosen.token for chosen in choose(LOGITS.expand(count, -1), asks)}


def test_greedy_takes_the_greatest() -> None:
    assert one(Sampling()).token == 1


def test_same_seed_and_position_give_the_same_token() -> None:
    hot = Sampling(temperature=2.0)
    assert [one(hot, at).token for at in range(50)] == [one(hot, at).token for at in range(50)]
    assert len(draws(hot)) >= 4


def test_tokens_are_drawn_by_their_chances() -> None:
    asks = [Ask(Sampling(temperature=1.5), 3, position) for position in range(20_000)]
    found = torch.tensor([chosen.token for chosen in choose(LOGITS.expand(len(asks), -1), asks)])
    wanted = torch.softmax(LOGITS / 1.5, 0)
    assert torch.allclose(torch.bincount(found, minlength=5) / len(asks), wanted, atol=0.015)


def test_top_k_keeps_the_k_likeliest() -> None:
    assert draws(Sampling(temperature=5.0, top_k=2)) == {1, 3}


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    assert draws(Sampling(temperature=1.0, top_p=0.6)) == {1, 3}
    assert draws(Sampling(temperature=1.0, top_p=0.0)) == {1}


def test_top_p_looks_as_far_as_it_must() -> None:
    flat = torch.linspace(0, 1e-3, 5_000)
    kept = {
        chosen.token for chosen in choose(flat.expand(400, -1), [Ask(Sampling(temperature=1.0, top_p=0.5), 1, at) for at in range(400)])
    }
    assert 2_490 < min(kept) < 2_600


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest() -> None:
    assert draws(Sampling(temperature=1.0, min_p=0.5)) == {1, 3}
    assert draws(Sampling(temperature=1.0, min_p=1.0)) == {1}


def test_a_bias_is_added_and_can_forbid() -> None:
    assert one(Sampling(logit_bias=[LogitBias(4, 100.0)])).token == 4
    assert 1 not in draws(Sampling(temperature=5.0, logit_bias=[LogitBias(1, -100.0)]))


def test_penalties_count_the_reply() -> None:
    assert one(Sampling(presence_penalty=0.2), counts={1: 1}).token == 3
    assert one(Sampling(frequency_penalty=0.06), counts={1: 1}).token == 1
    assert one(Sampling(frequency_penalty=0.06), counts={1: 2}).token == 3
    assert one(Sampling(repetition_penalty=1.1), counts={1: 1}).token == 3
    assert one(Sampling(presence_penalty=0.2)).token == 1


def test_a_repetition_penalty_lowers_what_is_negative_too() -> None:
    chosen = one(Sampling(repetition_penalty=2.0, logprobs=5), counts={4: 1})
    values = {entry.token: entry.logprob for entry in chosen.logprobs or []}
    assert values[1] - values[4] == pytest.approx(13.0)


def test_what_a_grammar_forbids_is_never_taken_nor_told() -> None:
    allowed = torch.tensor([True, False, True, False, False])
    assert one(Sampling(), allowed=allowed).token == 2
    chosen = one(Sampling(temperature=9.0, logprobs=5), allowed=allowed)
    assert {entry.token for entry in chosen.logprobs or []} == {0, 2}


def test_logprobs_are_the_chosen_one_and_the_likeliest() -> None:
    wanted = torch.log_softmax(LOGITS, 0)
    chosen = one(Sampling(temperature=8.0, logprobs=2), position=5)
    assert [entry.token for entry in chosen.logprobs or []] == [chosen.token, 1, 3]
    assert all(entry.logprob == pytest.approx(float(wanted[entry.token])) for entry in chosen.logprobs or [])
    assert one(Sampling(logprobs=0)).logprobs is not None
    assert one(Sampling()).logprobs is None


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.one_of(st.just(0.0), st.floats(0.01, 10)),
    top_p=st.floats(0, 1),
    top_k=st.integers(0, 10),
    min_p=st.floats(0, 1),
    frequency_penalty=st.floats(-2, 2),
    repetition_penalty=st.floats(0.01, 10),
    logprobs=st.one_of(st.none(), st.integers(0, 20)),
    logit_bias=st.lists(st.builds(LogitBias, st.integers(0, 4), st.floats(-100, 100)), max_size=3),
)
ASKS = st.builds(
    Ask,
    SAMPLINGS,
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.integers(0, 1 << 31),
    st.dictionaries(st.integers(0, 4), st.integers(1, 9)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ASKS, min_size=1, max_size=40), st.integers(0, 1 << 30))
def test_a_row_depends_on_nothing_but_itself(asks: list[Ask], noise: int) -> None:
    logits = torch.randn(len(asks), 5, generator=torch.Generator().manual_seed(noise)) * 5
    together = choose(logits, asks)
    assert together == [choose(logits[row : row + 1], [ask])[0] for row, ask in enumerate(asks)]
    assert all(0 <= chosen.token < 5 for chosen in together)
    assert all(math.isfinite(entry.logprob) for chosen in together for entry in chosen.logprobs or [])


def test_a_crowds_choice_takes_what_the_formula_says_and_no_more() -> None:
    words = 100_000
    logits = torch.randn(200, words, generator=torch.Generator().manual_seed(3)).bfloat16()
    asks = [Ask(Sampling(temperature=1.0, seed=row, logprobs=3 if row % 9 == 0 else None), row, 5) for row in range(200)]
    choose(logits[:20], asks[:20])
    with Peak() as peak:
        found = choose(list(logits.split(2)), asks)
    assert peak.more < 2 * choice_bytes(words)  # what malloc keeps included; all at once would be four times as much
    assert found == choose(logits, asks)


def test_the_greatest_is_the_first_of_equals_and_none_of_what_isnt_a_number() -> None:
    rng = torch.Generator().manual_seed(3)
    for dtype in (torch.float32, torch.bfloat16):
        made = torch.randn(5, 4_097, generator=rng).to(dtype).float()
        logits = made.numpy()
        assert greatest(logits) == made.argmax(-1).tolist()
        logits[3, [7, 4_000]] = 9.0
        assert greatest(logits[3:4]) == [7]
        for number in (math.nan, math.inf, -math.nan):
            spoilt = logits.copy()
            spoilt[4, 4_096] = number
            assert greatest(spoilt) is None
            assert greatest(spoilt[:4]) is not None
    assert greatest(np.full((1, 9), -math.inf)) is None
