"""`ModelRunner` over llama.cpp: slots in contexts by length, which grow as sequences do.

A context reserves all positions of all its places at once, so long sequences would make short ones pay. Slots therefore lie in
contexts of 256, 512, 1,024 … positions. A sequence whose greatest length is known gets its place there at once (`seat`), so that what is
taken is known too, and charged, before anything is computed; any other moves up when it outgrows its context: a copy of what it holds,
once per doubling. A context has 1, 2, 4, 6, 8, 12 … places, and grows the same way; while it does, the old one lies beside the new one.
Rejected: places only as sequences grow, charged by what they may reach (a crowd of short ones takes up to 256 positions each that nobody
charged, and one that moves leaves its old place behind, taken until the last one there ends).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from protocol.errors import BadInput, Busy, Conflict, NotFound, Unavailable
from runtime.llama.context import Context, Part
from runtime.llama.library import Library
from runtime.llama.stage_file import BITS, Shape, embedded
from runtime.model_runner import Row

SHORTEST = 256
MOST_PLACES = 256
"""llama.cpp's own bound of sequences in a context."""
_PLACES = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, MOST_PLACES)


@dataclass
class _Bucket:
    """Sequences of at most `positions`: the context, and which slot lies at which place."""

    positions: int
    context: Context
    slots: dict[int, int] = field(default_factory=dict)

    def free_place(self) -> int | None:
        taken = set(self.slots.values())
        return next((place for place in range(self.context.places) if place not in taken), None)


class LlamaRunner:
    """Layers [first, end) of a file made by `stage_file.write_stage`. Use from one thread.

    Its last stage doesn't show what it has before its head: `tails` stays empty, an audit has the tokens alone to go by.
    """

    batched = True
    fixed_bytes = 0

    def __init__(
        self, library: Library, path: Path, shape: Shape, span: tuple[int, int], layers: int, precision: str, weight_bytes: int,
        threads: int, words: torch.Tensor | None,
    ) -> None:  # fmt: skip
        """`words` the embedding [vocabulary, hidden], for a first stage that isn't the last too. `Unavailable` when it can't be loaded."""
        self.first, self.end = span
        self.layers, self.precision, self.weight_bytes = layers, precision, weight_bytes
        self.hidden, self.vocabulary = shape.hidden, shape.words
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.token_bytes = (self.end - self.first) * 2 * shape.kv_heads * shape.head_dim * 2
        self._library, self._threads, self._words = library, threads, words
        self._context_length = shape.context
        self.scratch_each = 0
        """The most that a context had so far."""
        self._buckets: dict[int, _Bucket] = {}
        self._lengths: dict[int, int] = {}
        self.keep_tails, self.tails = False, list[torch.Tensor]()
        params = library.model_params()
        params.n_gpu_layers = 0
        library.said.clear()
        self._model = library.model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise Unavailable(f"llama.cpp didn't load the stage: {library.why()}")

    @property
    def last(self) -> bool:
        return self.end == self.layers

    @property
    def reserved_bytes(self) -> int:
        """Memory for keys and values that is taken, used or not."""
        return sum(self._kv_bytes(bucket.context.places, bucket.positions) for bucket in self._buckets.values())

    @property
    def scratch(self) -> list[int]:
        """What each context has beside it to compute in, as it tells."""
        return [bucket.context.other_bytes for bucket in self._buckets.values()]

    def place_bytes(self, positions: int) -> int:
        """Of one sequence that may reach `positions`."""
        return self._kv_bytes(1, _length(positions))

    def bytes_to_seat(self, positions: int) -> int:
        """Keys and values that seating one more such sequence takes at its height: nothing where a place is free."""
        length = _length(positions)
        bucket = self._buckets.get(length)
        used = 0 if bucket is None else len(bucket.slots)
        if bucket is not None and used < bucket.context.places:
            return 0
        return self._kv_bytes(_places(used + 1, length), length)

    def seat(self, slot: int, positions: int) -> None:
        """A place in which the slot's sequence can reach `positions`."""
        self._move(slot, positions)

    def give_back(self) -> None:
        """Contexts without sequences go."""
        for positions in [positions for positions, bucket in self._buckets.items() if not bucket.slots]:
            self._buckets.pop(positions).context.close()

    def _kv_bytes(self, places: int, positions: int) -> int:
        return places * positions * self.token_bytes

    def close(self) -> None:
        for bucket in self._buckets.values():
            bucket.context.close()
        self._buckets.clear()
        if self._model:
            self._library.model_free(self._model)
            self._model = None

    def open(self, slots: int, positions: int) -> None:
        """Room is made as sequences grow: what they may reach isn't what they need."""
        if not 1 <= slots <= MOST_PLACES:
            raise Busy(f"{slots} sequences, llama.cpp takes at most {MOST_PLACES}")

    def release(self, slot: int) -> None:
        self._lengths.pop(slot, None)
        found = self._find(slot)
        if found is not None:
            found.context.crop(found.slots.pop(slot), 0)
        self._let_go_empty()

    def crop(self, slot: int, position: int) -> None:
        held = self._lengths.get(slot, 0)
        if position > held:
            raise Conflict(f"slot {slot} holds {held} positions, it can't go back to {position}")
        found = self._find(slot)
        if found is not None and position < held:
            found.context.crop(found.slots[slot], position)
            self._lengths[slot] = position

    def run(self, rows: list[Row], hidden: torch.Tensor | None) -> torch.Tensor:
        # All are settled first: a bucket that grows for one gives the others new places.
        for row in rows:
            self._settle(row)
        parts: dict[int, list[tuple[int, Part]]] = {}
        logits = torch.empty(sum(row.logits for row in rows), self.vocabulary) if self.last else None
        at = begun = 0
        for number, row in enumerate(rows):
            bucket = self._find(row.slot)
            assert bucket is not None
            given = None if hidden is None else hidden[at : at + row.count]
            parts.setdefault(bucket.positions, []).append((number, self._part(bucket, row, given)))
            if logits is not None:
                parts[bucket.positions][-1][1].into = logits[begun : begun + row.logits]
            at, begun = at + row.count, begun + row.logits
        made: dict[int, torch.Tensor] = {}
        for positions, these in parts.items():
            outs = self._buckets[positions].context.run([part for _, part in these])
            made.update({number: out for (number, _), out in zip(these, outs, strict=True)})
        for row in rows:
            self._lengths[row.slot] = row.position + row.count
        if logits is not None:
            return logits
        return (made[0] if len(rows) == 1 else torch.cat([made[number] for number in range(len(rows))])).to(self.dtype)

    def _part(self, bucket: _Bucket, row: Row, given: torch.Tensor | None) -> Part:
        tokens = row.tokens
        if tokens is not None and self.first > 0:
            raise BadInput("tokens go to the first stage")
        if tokens is not None and not self.last:
            if self._words is None:
                raise NotFound("this stage has no embedding")
            tokens, given = None, embedded(self._words[torch.tensor(row.tokens)], self.precision)
        return Part(bucket.slots[row.slot], row.position, row.count, tokens, given, row.logits if self.last else 0)

    def _settle(self, row: Row) -> None:
        """Sees that the row's sequence lies where it has room, moving it there where it had outgrown its bucket."""
        self.crop(row.slot, row.position)
        self._move(row.slot, row.position + row.count)

    def _move(self, slot: int, needed: int) -> None:
        found = self._find(slot)
        if found is not None and needed <= found.positions:
            return
        bucket = self._bucket(_length(needed), 1)
        place = bucket.free_place()
        assert place is not None
        if found is not None:
            old = found.slots.pop(slot)
            if self._lengths.get(slot, 0):
                bucket.context.set_state(place, found.context.state(old))
            found.context.crop(old, 0)
        bucket.slots[slot] = place

    def _find(self, slot: int) -> _Bucket | None:
        return next((bucket for bucket in self._buckets.values() if slot in bucket.slots), None)

    def _bucket(self, positions: int, more: int) -> _Bucket:
        """The bucket of this length with room for `more` sequences."""
        bucket = self._buckets.get(positions)
        used = len(bucket.slots) if bucket is not None else 0
        if bucket is not None and bucket.context.places - used >= more:
            return bucket
        grown = _Bucket(positions, self._context(_places(used + more, positions), positions))
        if bucket is not None:
            for place, (slot, old) in enumerate(bucket.slots.items()):
                if self._lengths.get(slot, 0):
                    grown.context.set_state(place, bucket.context.state(old))
                grown.slots[slot] = place
            bucket.context.close()
        self._buckets[positions] = grown
        return grown

    def _context(self, places: int, positions: int) -> Context:
        made = Context(self._library, self._model, places, positions, self._threads, self.end - self.first, self.hidden, self.last)
        made.words = self.vocabulary
        self.scratch_each = max(self.scratch_each, made.other_bytes)
        return made

    def _let_go_empty(self) -> None:
        """Keeps the last empty bucket: the next sequence comes soon."""
        empty = [positions for positions, bucket in self._buckets.items() if not bucket.slots]
        for positions in empty[1:] if len(empty) == len(self._buckets) else empty:
            self._buckets.pop(positions).context.close()


def _places(used: int, positions: int) -> int:
    if used > MOST_PLACES:
        raise Busy(f"{MOST_PLACES} sequences of up to {positions} positions are open here, the most llama.cpp takes")
    return next(count for count in _PLACES if count >= used)


def _length(positions: int) -> int:
    length = SHORTEST
    while length < positions:
        length *= 2
    return length


def weight_bytes(count: int, precision: str) -> int:
    """Bytes of so many weights by formula."""
    return int(count * BITS[precision] / 8)
