"""How far apart two greedy replies of one model were where they parted, by transformers in the reference precision.

The undisturbed reply is known by its pieces, the text that each of its tokens added; the other one by its text alone: what is told while a
worker starts anew comes in one piece. Which token it took where they part is looked for among those the model finds likely there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

LIKELY = 500
"""Tokens looked at for the one that was taken."""
Parted = tuple[str, Sequence[str], str]
"""A prompt, the pieces of the undisturbed reply to it, the text of the other one."""


def gaps(folder: Path, parted: Iterable[Parted]) -> list[float]:
    """For each pair what the worse token's logit lies behind the best one's at their first difference.

    Infinite where a text goes on with no likely token.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return [_gap(tokenizer, model, *one) for one in parted]


def _gap(tokenizer: Any, model: Any, prompt: str, one: Sequence[str], other: Sequence[str]) -> float:
    chat = [{"role": "user", "content": prompt}]
    given = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"][0].tolist()
    said: list[int] = []
    for piece in [*one, None]:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([given + said])).logits[0, -1]
        likely = torch.topk(logits, min(LIKELY, logits.numel())).indices.tolist()
        token = _token(tokenizer, likely, said, piece)
        if token is None:
            return float("inf")
        if piece is None or not other.startswith(tokenizer.decode([*said, token])):
            its = _others(tokenizer, likely, said, other)
            return float("inf") if its is None else float(logits.max() - logits[[token, its]].min())
        said.append(token)
    raise AssertionError("the loop ends with the reply")


def _token(tokenizer: Any, likely: list[int], said: list[int], piece: str | None) -> int | None:
    """The likeliest one that adds `piece` to what was said; None as a piece is the end."""
    if piece is None:
        return int(tokenizer.eos_token_id)
    text = tokenizer.decode(said) + piece
    return next((token for token in likely if tokenizer.decode([*said, token]) == text), None)


def _others(tokenizer: Any, likely: list[int], said: list[int], text: str) -> int | None:
    """The likeliest with which `text` goes on, where it does."""
    if text == tokenizer.decode(said):
        return int(tokenizer.eos_token_id)
    there = len(tokenizer.decode(said))
    return next((token for token in likely if len(told := tokenizer.decode([*said, token])) > there and text.startswith(told)), None)
