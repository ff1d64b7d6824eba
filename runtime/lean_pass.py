"""One pass laid out: which rows stand where, and the attention of each group of them.

Rows of one new token whose sequences lie in the same slab attend together: two batched multiplications over the places of
the slab, over its whole room (oneDNN copies a matrix whose rows don't fill their batch, all of it, every time: 1383 against
533 microseconds a layer for 64 sequences of SmolLM2's heads, where the memory's speed would allow 470; fused attention 2647). Where bf16 is
multiplied one by one, through fused attention (1147 against 5772 for 32 at 256 positions), and there every row by itself
(`row_attention.py`).
All others (prefills, drafts, a sequence by itself) attend alone through fused attention, the fastest for one (20 against 52 at
100 positions).

The past's views are made once for all layers and taken from lists inside the loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from runtime.kv_slabs import Place, Shape, Slab
from runtime.model_runner import Row
from runtime.row_attention import attend_many, attend_one, attend_places, begin_of, by_rows, end_of, one_by_one

_TOGETHER = 3
"""Rows in a slab from which one multiplication for all is faster than one for each."""


@dataclass(frozen=True)
class Heads:
    """Of every layer: `group` query heads share a key head."""

    kv_heads: int
    group: int
    head_dim: int
    scale: float
    softcap: float | None
    windows: tuple[int | None, ...]
    """By layer."""

    @property
    def queries(self) -> int:
        return self.kv_heads * self.group


class Alone:
    """Rows [at, at + count) of the pass: new positions of one sequence."""

    def __init__(self, heads: Heads, place: Place, at: int, start: int, count: int) -> None:
        self._heads, self._at, self._start, self._count = heads, at, start, count
        kv, index, end = place.slab.kv, place.index, start + count
        self._kv, self._index = kv, index
        self._sees_all = set(heads.windows) == {None}
        self._into = kv[:, :, index, :, start:end].unbind(1)
        self._by_rows = heads.softcap is None and by_rows(kv)
        self._reach = reach = end_of(end) if self._by_rows else end
        self._past: dict[int | None, tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]] = {}
        self._masks: dict[int | None, torch.Tensor | None] = {}
        for window in set(heads.windows):
            begin = max(0, start + 1 - window) if window else 0
            begin = begin_of(begin) if self._by_rows else begin
            self._past[window] = (
                kv[0, :, index : index + 1, :, begin:reach].unbind(0),
                kv[1, :, index : index + 1, :, begin:reach].unbind(0),
            )
            hides = count > 1 or reach > end or (window is not None and begin < end - window)
            self._masks[window] = _causal(kv, begin, reach, start, count, window) if hides else None

    def follow(self) -> bool:
        """Is the next position's from now on, where nearly all that is laid out stays; False, and as it was, where it doesn't."""
        end = self._start + 2
        if self._count != 1 or end > self._reach or not self._by_rows or not self._sees_all:
            return False
        self._start += 1
        self._into = self._kv[:, :, self._index, :, self._start : end].unbind(1)
        mask = self._masks[None]
        if mask is None or end == self._reach:
            self._masks[None] = None
        else:
            mask[0, self._start] = 0.0
        return True

    def write(self, layer: int, new: torch.Tensor) -> None:
        """`new` [rows, 2 * kv_heads, head_dim]: rotated keys, then values."""
        heads = self._heads
        mine = new[self._at : self._at + self._count].view(self._count, 2, heads.kv_heads, heads.head_dim)
        self._into[layer].copy_(mine.permute(1, 2, 0, 3))

    def attend(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """`q` [rows, heads, head_dim] of the whole pass, result of this group's rows."""
        heads, at, count, window = self._heads, self._at, self._count, self._heads.windows[layer]
        keys, values = self._past[window][0][layer], self._past[window][1][layer]
        mine = q[at : at + count].view(count, heads.kv_heads, heads.group, heads.head_dim)
        if count == 1:
            return self._one(mine, keys, values, window).view(1, heads.queries, heads.head_dim)
        if self._by_rows and (mask := self._masks[window]) is not None:
            return attend_many(mine, keys, values, mask, heads.scale)
        turned = mine.permute(1, 2, 0, 3).reshape(1, heads.queries, count, heads.head_dim)
        size = (1, heads.kv_heads, heads.group, keys.shape[2], heads.head_dim)
        wide = [one.unsqueeze(2).expand(size).flatten(1, 2) for one in (keys, values)]
        return _attention(turned, wide[0], wide[1], self._masks[window], heads)[0].transpose(0, 1)

    def single(self, layer: int, heads: torch.Tensor) -> torch.Tensor:
        """Both for a pass of one row: `heads` [1, heads + 2 * kv_heads, head_dim] to [1, heads * head_dim]. The same in fewer calls."""
        of, window = self._heads, self._heads.windows[layer]
        keys, values = self._past[window]
        self._into[layer].copy_(heads.narrow(1, of.queries, 2 * of.kv_heads).view(2, of.kv_heads, 1, of.head_dim))
        q = heads.narrow(1, 0, of.queries).view(1, of.kv_heads, of.group, of.head_dim)
        return self._one(q, keys[layer], values[layer], window).view(1, -1)

    def _one(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None) -> torch.Tensor:
        if self._by_rows:
            return attend_one(q, keys, values, self._masks[window], self._heads.scale)
        return _attention(q, keys, values, None, self._heads)


def _causal(kv: torch.Tensor, begin: int, reach: int, start: int, count: int, window: int | None) -> torch.Tensor:
    """[count, positions from `begin` to `reach`]: what each new position may look at, as numbers to add."""
    seen = torch.arange(begin, reach, device=kv.device)
    asking = torch.arange(start, start + count, device=kv.device).unsqueeze(1)
    hidden = seen > asking
    if window:
        hidden |= seen <= asking - window
    return torch.zeros(hidden.shape, dtype=kv.dtype, device=kv.device).masked_fill_(hidden, float("-inf"))


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, heads: Heads) -> torch.Tensor:
    if heads.softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=heads.scale)
    scores = torch.tanh(q @ k.transpose(2, 3) * (heads.scale / heads.softcap)) * heads.softcap
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v


class Together:
    """Rows [at, at + len(places)) of the pass, one new token each, in the order of their places in `slab`."""

    def __init__(self, heads: Heads, slab: Slab, places: list[int], at: int, lengths: list[int]) -> None:
        """`lengths` after this token."""
        self._heads, self._at, self._count = heads, at, len(places)
        kv, self._top = slab.kv, places[-1] + 1
        layers = kv.shape[1]
        self._room = slab.room
        self._fused = heads.softcap is None and one_by_one(kv)
        self._holes = None if self._top == len(places) else torch.tensor(places, device=kv.device)
        self._flat = kv.view(-1, heads.head_dim)
        self._lines = _lines(slab, heads.kv_heads, layers, torch.tensor(places), torch.tensor(lengths) - 1).to(kv.device)
        self._keys, self._values = (kv[side, :, : self._top].flatten(1, 2).unbind(0) for side in (0, 1))
        all_lengths = torch.ones(self._top, dtype=torch.long)
        all_lengths[torch.tensor(places)] = torch.tensor(lengths)
        self._masks = {window: self._mask(kv, all_lengths, window) for window in set(heads.windows)}

    def _mask(self, kv: torch.Tensor, lengths: torch.Tensor, window: int | None) -> torch.Tensor | None:
        """[places, 1, room] to add, None when all are full and nothing is out of sight."""
        if int(lengths.min()) == self._room and (not window or self._room <= window):
            return None
        seen = torch.arange(self._room)
        hidden = seen >= lengths.unsqueeze(1)
        if window:
            hidden |= seen < lengths.unsqueeze(1) - window
        return torch.zeros(hidden.shape, dtype=kv.dtype).masked_fill_(hidden, float("-inf")).unsqueeze(1).to(kv.device)

    def write(self, layer: int, new: torch.Tensor) -> None:
        mine = new[self._at : self._at + self._count]
        self._flat.index_copy_(0, self._lines[layer], mine.view(-1, self._heads.head_dim))

    def attend(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        heads, window = self._heads, self._heads.windows[layer]
        mine = q[self._at : self._at + self._count]
        if self._holes is not None:
            spread = mine.new_zeros(self._top, heads.queries, heads.head_dim)
            mine = spread.index_copy_(0, self._holes, mine)
        if self._fused:
            size = (self._top, heads.kv_heads, -1, heads.head_dim)
            asked, keys, values = (one.view(size) for one in (mine.contiguous(), self._keys[layer], self._values[layer]))
            found = attend_places(asked, keys, values, self._masks[window], heads.scale)
            return found if self._holes is None else found.index_select(0, self._holes)
        asked = mine.reshape(self._top * heads.kv_heads, heads.group, heads.head_dim)
        scores = torch.bmm(asked, self._keys[layer].transpose(1, 2))
        if heads.softcap is None:
            scores.mul_(heads.scale)
        else:
            scores.mul_(heads.scale / heads.softcap).tanh_().mul_(heads.softcap)
        if (mask := self._masks[window]) is not None:
            scores.view(self._top, heads.queries, self._room).add_(mask)
        found = torch.bmm(torch.softmax(scores, -1), self._values[layer]).view(self._top, heads.queries, heads.head_dim)
        return found if self._holes is None else found.index_select(0, self._holes)

    def single(self, layer: int, heads: torch.Tensor) -> torch.Tensor:
        raise AssertionError("several rows are no single one")


def _lines(slab: Slab, kv_heads: int, layers: int, places: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[layers, rows * 2 * kv_heads]: where each row's new keys and values lie in the slab seen as lines of head_dim numbers."""
    side, layer, head = torch.arange(2).view(1, 1, 2, 1), torch.arange(layers).view(-1, 1, 1, 1), torch.arange(kv_heads)
    start = ((side * layers + layer) * slab.places + places.view(1, -1, 1, 1)) * kv_heads + head
    return (start * slab.room + positions.view(1, -1, 1, 1)).view(layers, -1)


@dataclass
class Pass:
    """`order` rows of the request as they stand here, `offsets` the first new token of each (in this order), `positions` of all tokens."""

    groups: list[Alone | Together]
    order: list[int]
    offsets: list[int]
    positions: list[int]


def lay_out(rows: list[Row], places: list[Place], heads: Heads, shape: Shape) -> Pass:
    """Groups the rows; `places` one for each, with room made."""
    slabs: dict[int, list[int]] = {}
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        if row.count == 1:
            slabs.setdefault(id(place.slab), []).append(number)
    grouped = [sorted(found, key=lambda number: places[number].index) for found in slabs.values() if _worth(found, places)]
    together = {number for found in grouped for number in found}
    order = [number for found in grouped for number in found] + [number for number in range(len(rows)) if number not in together]
    offsets, positions = [], list[int]()
    for number in order:
        offsets.append(len(positions))
        positions.extend(range(rows[number].position, rows[number].position + rows[number].count))
    groups: list[Alone | Together] = []
    at = 0
    for found in grouped:
        lengths = [rows[number].position + 1 for number in found]
        groups.append(Together(heads, places[found[0]].slab, [places[number].index for number in found], at, lengths))
        at += len(found)
    for number in order[at:]:
        groups.append(Alone(heads, places[number], at, rows[number].position, rows[number].count))
        at += rows[number].count
    return Pass(groups, order, offsets, positions)


def _worth(found: list[int], places: list[Place]) -> bool:
    top = max(places[number].index for number in found) + 1
    return len(found) >= _TOGETHER and 2 * len(found) >= top
