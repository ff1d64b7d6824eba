from __future__ import annotations

import math
from typing import Any

import pytest

from protocol import limits
from protocol.errors import BadInput
from protocol.messages import Grammar, LogitBias, Sampling
from protocol.sampling_check import check_sampling


def test_what_is_usual_passes() -> None:
    biases = [LogitBias(3, -100.0)] * limits.MAX_LOGIT_BIAS
    grammar = Grammar(kind="regex", text="a" * limits.MAX_GRAMMAR)
    check_sampling(Sampling(), 10)
    check_sampling(Sampling(temperature=1.0, top_p=0.9, logit_bias=biases, grammar=grammar, logprobs=limits.MAX_LOGPROBS), 10)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-0.1, 101.0, math.nan, math.inf]),
        ("top_p", [-0.1, 1.1, math.nan]),
        ("top_k", [-1]),
        ("min_p", [-0.1, 1.1, math.nan]),
        ("frequency_penalty", [-2.1, 2.1, math.nan]),
        ("presence_penalty", [-2.1, 2.1]),
        ("repetition_penalty", [0.0, -1.0, 101.0, math.nan]),
        ("logprobs", [-1, limits.MAX_LOGPROBS + 1]),
        ("seed", [1 << 64]),
        ("logit_bias", [[LogitBias(0, 0.0)] * (limits.MAX_LOGIT_BIAS + 1), [LogitBias(10, 1.0)], [LogitBias(-1, 1.0)]]),
        ("logit_bias", [[LogitBias(0, math.nan)], [LogitBias(0, math.inf)], [LogitBias(0, 1e9)]]),
        ("grammar", [Grammar(kind="yacc"), Grammar(kind="regex", text="a" * (limits.MAX_GRAMMAR + 1))]),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(BadInput, match=f"^{field}: ") as raised:
            check_sampling(Sampling(**{field: value}), 10)
        assert raised.value.details == {"param": field}
