"""Logarithms of tokens in the two shapes that OpenAI has for them."""

from __future__ import annotations

from collections.abc import Sequence

from node.gateway import TextLogprob
from node.http.openai_replies import ChoiceLogprobs, CompletionLogprobs, LikelyToken, TokenLogprob


def token_logprobs(tokens: Sequence[TextLogprob]) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            token=one.text,
            logprob=0.0 if one.logprob is None else one.logprob,
            bytes=list(one.raw),
            top_logprobs=[LikelyToken(token=text, logprob=logprob, bytes=list(raw)) for text, raw, logprob in one.top],
        )
        for one in tokens
    ]


def chat_logprobs(tokens: Sequence[TextLogprob] | None) -> ChoiceLogprobs | None:
    """None where they weren't asked for."""
    return None if tokens is None else ChoiceLogprobs(content=token_logprobs(tokens))


def completion_logprobs(tokens: Sequence[TextLogprob] | None, offset: int = 0) -> CompletionLogprobs | None:
    """`offset`: characters of the choice's text before these."""
    if tokens is None:
        return None
    offsets = []
    for one in tokens:
        offsets.append(offset)
        offset += len(one.text)
    return CompletionLogprobs(
        tokens=[one.text for one in tokens],
        token_logprobs=[one.logprob for one in tokens],
        top_logprobs=[None if one.logprob is None else _top(one) for one in tokens],
        text_offset=offsets,
    )


def _top(one: TextLogprob) -> dict[str, float]:
    """The likeliest, and the chosen token too where it isn't one of them, as OpenAI gives them. Of tokens with one text the likelier."""
    top: dict[str, float] = {}
    for text, _, logprob in one.top:
        top.setdefault(text, logprob)
    if one.logprob is not None:
        top.setdefault(one.text, one.logprob)
    return top
