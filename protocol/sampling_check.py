"""What a reply's sampling may be, checked where it comes in and again where it is used: a stage's entry is a stranger."""

from __future__ import annotations

import math

from protocol import limits
from protocol.errors import BadInput
from protocol.messages import Grammar, Sampling

_RANGES = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "top_k": (0, 1 << 31),
    "min_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 100.0),
    "logprobs": (0, limits.MAX_LOGPROBS),
    "seed": (-(1 << 63), (1 << 64) - 1),
}
_MAX_BIAS = 1_000.0
GRAMMARS = ("json", "json_schema", "regex", "lark")


def check_sampling(sampling: Sampling, vocabulary: int | None = None) -> None:
    """`BadInput` naming the field and its range; token ids are checked where `vocabulary` is known."""
    for name, (low, high) in _RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not low <= value <= high:
            raise _wrong(name, f"{value} isn't between {low:g} and {high:g}")
    biases = sampling.logit_bias or []
    if len(biases) > limits.MAX_LOGIT_BIAS:
        raise _wrong("logit_bias", f"{len(biases)} tokens, at most {limits.MAX_LOGIT_BIAS} are allowed")
    for one in biases:
        if one.token < 0 or (vocabulary is not None and one.token >= vocabulary):
            raise _wrong("logit_bias", f"token {one.token} isn't one of the model's")
        if not math.isfinite(one.bias) or abs(one.bias) > _MAX_BIAS:
            raise _wrong("logit_bias", f"a bias of {one.bias} isn't between {-_MAX_BIAS:g} and {_MAX_BIAS:g}")
    if sampling.grammar is not None:
        _check_grammar(sampling.grammar)


def _check_grammar(grammar: Grammar) -> None:
    if grammar.kind not in GRAMMARS:
        raise _wrong("grammar", f"kind {grammar.kind[:16]!r}, {', '.join(GRAMMARS)} are known")
    if len(grammar.text) > limits.MAX_GRAMMAR:
        raise _wrong("grammar", f"{len(grammar.text)} characters, at most {limits.MAX_GRAMMAR} are allowed")


def _wrong(name: str, why: str) -> BadInput:
    return BadInput(f"{name}: {why}", details={"param": name})
