"""A row is to the last bit what it is by itself, whoever shares the pass and however a sequence was cut: on processors where it can be."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from runtime.lean import LeanRunner
from runtime.model_runner import Row
from runtime.row_attention import BLOCK, REACH, attend_many, attend_one, attend_places, begin_of, by_rows, end_of, tall
from tests.runtime.lean_kinds import KINDS, lean_of, reference, words

BF16 = torch.zeros(1, dtype=torch.bfloat16)
LENGTH = 90
HEADS = [(64, 3, 3), (16, 2, 2), (128, 2, 8), (80, 4, 1), (64, 2, 7)]
"""head_dim, kv_heads, group."""


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    if by_rows(BF16):
        assert torch.equal(one, other)
    else:
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("group", range(1, 20))
def test_small_matrices_part_a_group_evenly(group: int) -> None:
    assert group % tall(group) == 0
    assert tall(group) == max(size for size in (1, 2, 3) if group % size == 0)


def test_reaches() -> None:
    assert [end_of(seen) for seen in (1, REACH, REACH + 1)] == [REACH, REACH, 2 * REACH]
    assert [begin_of(seen) for seen in (0, BLOCK - 1, BLOCK)] == [0, 0, BLOCK]


@pytest.mark.parametrize(("width", "kv_heads", "group"), HEADS)
@pytest.mark.parametrize("window", [None, 100])
def test_the_three_ways_agree(width: int, kv_heads: int, group: int, window: int | None) -> None:
    """And give what plain attention in fp32 gives, about."""
    chance, given = random.Random(width + kv_heads), torch.Generator().manual_seed(group)
    for total in (40, 200, 700, 1_100):
        room = -(-total // 256) * 256
        keys, values = (torch.randn(1, kv_heads, room, width, generator=given).bfloat16() for _ in range(2))
        asked = torch.randn(total, kv_heads, group, width, generator=given).bfloat16()
        count = chance.choice([2, 31, 40])
        start = total - count
        begin, reach = begin_of(max(0, start + 1 - window)) if window else 0, end_of(total)
        many = attend_many(
            asked[start:],
            keys[:, :, begin:reach],
            values[:, :, begin:reach],
            hiding(range(start, total), begin, reach, window),
            width**-0.5,
        )
        for at in chance.sample(range(count), 2):
            q, n = asked[start + at : start + at + 1], start + at + 1
            begin, reach = begin_of(max(0, n - window)) if window else 0, end_of(n)
            seen = hiding(range(n - 1, n), begin, reach, window)
            alone = attend_one(q, keys[:, :, begin:reach], values[:, :, begin:reach], seen, width**-0.5).reshape(-1, width)
            same(many[at], alone)
            three = [one.expand(3, *one.shape[1:]).contiguous() for one in (q, keys, values)]
            places = attend_places(*three, hiding(range(n - 1, n), 0, room, window).expand(3, 1, room), width**-0.5)
            same(places[1], alone)
            least = max(0, n - window) if window else 0
            wide = [one[:, :, least:n].float().repeat_interleave(group, 1) for one in (keys, values)]
            right = F.scaled_dot_product_attention(q.float().view(1, -1, 1, width), *wide, scale=width**-0.5)
            torch.testing.assert_close(alone.float(), right.view(-1, width), rtol=0.03, atol=0.03)


def hiding(asking: range, begin: int, reach: int, window: int | None) -> torch.Tensor:
    """[rows, positions]: minus infinity on what a row at its position doesn't see."""
    seen, own = torch.arange(begin, reach), torch.tensor(list(asking)).unsqueeze(1)
    hidden = seen > own
    if window:
        hidden |= seen <= own - window
    return torch.zeros(hidden.shape, dtype=torch.bfloat16).masked_fill_(hidden, float("-inf"))


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("name", [name for name in KINDS if name != "gemma2"])
def test_cuts_and_company_change_no_bit(name: str, precision: str, tmp_path: Path) -> None:
    """Token by token, in one prompt, in pieces, and beside others. (Scores that are capped go another way.)"""
    config, model = reference(name)
    (runner,) = lean_of(tmp_path, config, model, 1, precision)
    tokens = words(1, LENGTH)
    alone = torch.cat([runner.run([Row(0, at, 1, [tokens[at]], 1)], None) for at in range(LENGTH)])
    same(in_pieces(runner, tokens, [LENGTH]), alone)
    same(in_pieces(runner, tokens, [7, 1, 30, 33, 19]), alone)
    same(beside_others(runner, tokens), alone)


def in_pieces(runner: LeanRunner, tokens: list[int], pieces: list[int]) -> torch.Tensor:
    runner.release(0)
    given, at = [], 0
    for piece in pieces:
        given.append(runner.run([Row(0, at, piece, tokens[at : at + piece], piece)], None))
        at += piece
    return torch.cat(given)


def beside_others(runner: LeanRunner, tokens: list[int]) -> torch.Tensor:
    """Four that decode in the same slab, one in its prompt."""
    runner.release(0)
    others = {slot: words(slot, LENGTH + 40) for slot in range(1, 6)}
    for slot in range(1, 5):
        runner.run([Row(slot, 0, 9 * slot, others[slot][: 9 * slot], 0)], None)
    given = []
    for at in range(LENGTH):
        rows = [Row(slot, 9 * slot + at, 1, [others[slot][9 * slot + at]], 1) for slot in range(1, 5)]
        rows += [Row(5, 2 * at, 2, others[5][at : at + 2], 0), Row(0, at, 1, [tokens[at]], 1)]
        given.append(runner.run(rows, None)[-1:])
    return torch.cat(given)


@pytest.mark.parametrize("name", ["llama", "mistral, window", "gemma2"])
def test_what_follows_the_last_pass_is_what_is_laid_out_anew(name: str, tmp_path: Path) -> None:
    """Row after row, over moves to longer rooms; back, beside another and on again; in a slot that another sequence had."""
    config, model = reference(name)
    (runner,) = lean_of(tmp_path, config, model, 1, "bf16")
    assert isinstance(runner, LeanRunner)
    tokens = words(3, 150)

    def run(anew: bool) -> torch.Tensor:
        found = []

        def one(position: int) -> None:
            if anew:
                runner._laid_out.clear()
            found.append(runner.run([Row(0, position, 1, [tokens[position]], 1)], None))

        runner.run([Row(0, 0, 5, tokens[:5], 0)], None)
        for position in range(5, 140):
            one(position)
        runner.crop(0, 37)
        for position in range(37, 50):
            one(position)
        runner.run([Row(1, 0, 3, tokens[:3], 0)], None)
        found.append(runner.run([Row(1, 3, 1, [tokens[3]], 1)], None))
        found.append(runner.run([Row(0, 50, 1, [tokens[50]], 1), Row(1, 4, 1, [tokens[4]], 1)], None))
        assert not runner._laid_out, "no room that is left for another is kept"
        for position in range(51, 60):
            one(position)
        runner.release(0)
        runner.release(1)
        for position in range(20):
            one(position)
        runner.release(0)
        return torch.cat(found)

    assert torch.equal(run(anew=False), run(anew=True))
    assert not runner._laid_out, "nothing of a sequence that is gone is kept"
