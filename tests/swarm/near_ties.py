"""How far apart two greedy replies of one model were where they parted, by transformers in the reference precision.

A reply is known by its pieces, the text that each of its tokens added: which token that was is looked for among those the model finds
likely there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

LIKELY = 500
"""Tokens looked at for the one that adds a piece."""
Parted = tuple[str, Sequence[str], Sequence[str]]
"""A prompt and two replies to it."""


def gaps(folder: Path, parted: Iterable[Parted]) -> list[float]:
    """For each pair what the worse token's logit lies behind the best one's at their first difference.

    Infinite where a piece is none of a likely token.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return [_gap(tokenizer, model, *one) for one in parted]


def _gap(tokenizer: Any, model: Any, prompt: str, one: Sequence[str], other: Sequence[str]) -> float:
    chat = [{"role": "user", "content": prompt}]
    given = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"][0].tolist()
    said: list[int] = []
    for piece, its in zip_longest(one, other):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([given + said])).logits[0, -1]
        token = _token(tokenizer, logits, said, piece)
        if piece != its:
            tokens = [token, _token(tokenizer, logits, said, its)]
            return float("inf") if None in tokens else float(logits.max() - logits[tokens].min())
        if token is None:
            return float("inf")
        said.append(token)
    raise ValueError("the replies are equal")


def _token(tokenizer: Any, logits: torch.Tensor, said: list[int], piece: str | None) -> int | None:
    """The likeliest one that adds `piece` to what was said; None as a piece is the end."""
    if piece is None:
        return int(tokenizer.eos_token_id)
    text = tokenizer.decode(said) + piece
    likely = torch.topk(logits, min(LIKELY, logits.numel())).indices.tolist()
    return next((token for token in likely if tokenizer.decode([*said, token]) == text), None)
