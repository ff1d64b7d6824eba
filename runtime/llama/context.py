"""One llama.cpp context: room for so many sequences of so many positions, and a pass over some of them.

Each sequence has memory of its own (not "unified"): else every row of a batch would attend over the cells of all others. llama.cpp
then computes neighbours together and only those, so rows are brought into the order of their places first.

The hidden states that a stage hands on are no output of llama.cpp's: they are taken out of its graph as the last layer's
result is computed, and the graph ends there, before norm and head.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from protocol.errors import Conflict, Unavailable
from runtime.llama.library import EVALUATED, Batch, Library

MOST_TOKENS = 512
MOST_LOGITS = 64
"""Rows of a pass that can have logits, room for all of which is taken at once; for fewer than sequences llama.cpp ends the process."""
_MARK, _HEAD = 8, 12
"""Bytes of a state's mark, and with the number of its streams."""

Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class Part:
    """What one sequence brings to a pass: `place` in the context, tokens or hidden rows [count, hidden]; logits of the last `logits`,
    which go into `into` [logits, words] where it is given."""

    place: int
    position: int
    count: int
    tokens: list[int] | None
    hidden: torch.Tensor | None
    logits: int
    into: torch.Tensor | None = None


class Context:
    def __init__(
        self, library: Library, model: int, places: int, positions: int, threads: int, blocks: int, width: int, last: bool
    ) -> None:
        """Room for `places` sequences of `positions` each; `blocks` layers of `width`. `Unavailable` when there is no memory."""
        self._library = library
        self.places, self.positions = places, positions
        self._width, self._last = width, last
        self._wanted = f"l_out-{blocks - 1}".encode()
        self._taken: list[Array] = []
        self._asked, self._skipped = 0, 0
        self._nodes: dict[tuple[int, int], int] = {}
        self._watch = EVALUATED(self._evaluated)
        params = library.context_params()
        params.n_ctx, params.n_seq_max = places * positions, places
        params.n_batch = params.n_ubatch = MOST_TOKENS
        self._most = max(MOST_LOGITS, places) if last else MOST_TOKENS
        params.n_outputs_max = self._most
        params.n_outputs_max_per_seq = 0
        params.n_threads = params.n_threads_batch = threads
        if not last:
            params.cb_eval = ctypes.cast(self._watch, ctypes.c_void_p).value
        library.said.clear()
        library.sizes.clear()
        self._context = library.init_from_model(model, params)
        if not self._context:
            raise Unavailable(f"llama.cpp made no room for {places} sequences of {positions} positions: {library.why()}")
        self.kv_bytes = sum(size for name, size in library.sizes if name == "KV")
        """As llama.cpp tells it."""
        self.other_bytes = sum(size for name, size in library.sizes if name != "KV")
        self._memory = library.get_memory(self._context)
        self._arrays = _Arrays(width)

    def close(self) -> None:
        if self._context:
            self._library.free(self._context)
            self._context = None

    def crop(self, place: int, position: int) -> None:
        if not self._library.memory_seq_rm(self._memory, place, position, -1):
            raise Conflict("this model's memory can't go back", hint="replay the session from position 0")

    def state(self, place: int) -> Array:
        """A sequence's memory, to be set in another context of the same model.

        llama.cpp writes a mark and the sequence, the number of its streams, then one entry for each: a count of 0 for those of other
        sequences. It takes such a state only where that number is the same; the entry itself fits anywhere, so the mark and it are kept.
        """
        held = np.empty(self._library.state_seq_get_size(self._context, place), np.uint8)
        size = self._library.state_seq_get_data(self._context, held.ctypes.data, held.size, place)
        if size < _HEAD + 4 * self.places or held[_MARK:_HEAD].view(np.uint32)[0] != self.places:
            raise Unavailable("llama.cpp's form of a sequence's memory isn't the one known here")
        entry = held[_HEAD + 4 * place : size - 4 * (self.places - 1 - place)]
        return np.concatenate([held[:_MARK], entry])

    def set_state(self, place: int, held: Array) -> None:
        streams = np.array([self.places], np.uint32).view(np.uint8)
        whole = np.concatenate([held[:_MARK], streams, held[_MARK:], np.zeros(4 * (self.places - 1), np.uint8)])
        self._library.said.clear()
        if self._library.state_seq_set_data(self._context, whole.ctypes.data, whole.size, place) != whole.size:
            raise Unavailable(f"llama.cpp couldn't take over a sequence's memory: {self._library.why()}", details={"bytes": int(held.size)})

    def run(self, parts: list[Part]) -> list[torch.Tensor]:
        """For each part its logits [logits, words] from the last stage, else its hidden states [count, hidden], fp32."""
        out: dict[int, torch.Tensor] = {}
        steps = sorted((part for part in parts if part.count == 1), key=lambda part: part.place)
        for batch in (steps[at : at + self._most] for at in range(0, len(steps), self._most)):
            for part, made in zip(batch, self._decode(batch), strict=True):
                out[part.place] = made
        for part in parts:
            if part.count != 1:
                out[part.place] = self._run_long(part)
        return [out[part.place] for part in parts]

    def _run_long(self, part: Part) -> torch.Tensor:
        made, at, quiet = [], 0, part.count - part.logits
        while at < part.count:
            count = min(MOST_TOKENS, part.count - at, max(quiet - at, 0) + self._most)
            tokens = None if part.tokens is None else part.tokens[at : at + count]
            hidden = None if part.hidden is None else part.hidden[at : at + count]
            asked = min(max(0, at + count - quiet), count)
            into = None if part.into is None else part.into[max(0, at - quiet) :][:asked]
            made += self._decode([Part(part.place, part.position + at, count, tokens, hidden, asked, into)])
            at += count
        return torch.cat(made) if part.into is None else part.into

    def _decode(self, parts: list[Part]) -> list[torch.Tensor]:
        total = self._arrays.fill(parts, everything=not self._last)
        graph = total, len(parts)
        self._taken.clear()
        self._asked, self._skipped = 0, self._nodes.get(graph, 0)
        self._library.said.clear()
        code = self._library.decode(self._context, self._arrays.batch(total, parts[0].tokens is None))
        if code == 0 and self._skipped and not self._last and not self._taken:
            return self._decode_again(parts)
        # Ended on purpose at the last layer, llama.cpp says 2 ("aborted") or 0, by build.
        if code != 0 and not (code == 2 and not self._last and self._taken):
            raise Unavailable(f"llama.cpp failed at a pass of {total} tokens (code {code}): {self._library.why()}")
        if self._last:
            return self._logits(parts)
        self._nodes[graph] = self._asked
        return self._hidden(parts)

    def _decode_again(self, parts: list[Part]) -> list[torch.Tensor]:
        """The graph isn't laid out as it was for a pass of this size before."""
        self._nodes.clear()
        for part in parts:
            self.crop(part.place, part.position)
        return self._decode(parts)

    def _hidden(self, parts: list[Part]) -> list[torch.Tensor]:
        rows = torch.from_numpy(np.concatenate(self._taken))
        counts = [part.count for part in parts]
        if len(rows) != sum(counts):
            raise Unavailable(f"llama.cpp gave {len(rows)} hidden states for {sum(counts)} positions")
        return list(rows.split(counts))

    def _logits(self, parts: list[Part]) -> list[torch.Tensor]:
        made, at = [], 0
        for part in parts:
            at += part.count
            into = torch.empty(part.logits, self.words) if part.into is None else part.into
            for number in range(part.logits):
                self._row(at - part.logits + number, into.data_ptr() + 4 * self.words * number)
            made.append(into)
        return made

    words = 0
    """Width of the logits, set by whoever knows the vocabulary."""

    def _row(self, row: int, into: int) -> None:
        """By the system's own copy: torch and numpy's views wake other threads for it, and are dearer than the bytes."""
        place = self._library.get_logits_ith(self._context, row)
        if not place:
            raise Unavailable(f"llama.cpp has no logits for row {row}: {self._library.why()}")
        ctypes.memmove(into, place, 4 * self.words)

    def _evaluated(self, tensor: int, asking: bool, _data: object) -> bool:
        """Called for every node of the graph, in order, and for the wanted one again once it is computed.

        Names are dear, so they aren't asked for before the place where the wanted one came last time.
        """
        if asking:
            self._asked += 1
            return self._asked >= self._skipped and bool(self._library.ggml_get_name(tensor) == self._wanted)
        rows = np.empty(self._library.ggml_nbytes(tensor) // 4, np.float32)
        self._library.ggml_backend_tensor_get(tensor, rows.ctypes.data, 0, rows.nbytes)
        self._taken.append(rows.reshape(-1, self._width))
        return False


class _Arrays:
    """The arrays behind a batch, made once."""

    def __init__(self, width: int) -> None:
        self._token, self._pos = np.zeros(MOST_TOKENS, np.int32), np.zeros(MOST_TOKENS, np.int32)
        self._ones, self._seq = np.ones(MOST_TOKENS, np.int32), np.zeros(MOST_TOKENS, np.int32)
        self._wanted = np.zeros(MOST_TOKENS, np.int8)
        self._seqs = (self._seq.ctypes.data + 4 * np.arange(MOST_TOKENS)).astype(np.uint64)
        self._embd = np.zeros((MOST_TOKENS, width), np.float32)

    def fill(self, parts: list[Part], everything: bool) -> int:
        at = 0
        for part in parts:
            end = at + part.count
            self._pos[at:end] = np.arange(part.position, part.position + part.count)
            self._seq[at:end] = part.place
            self._wanted[at:end] = everything
            if not everything and part.logits:
                self._wanted[end - part.logits : end] = 1
            if part.tokens is not None:
                self._token[at:end] = part.tokens
            elif part.hidden is not None:
                self._embd[at:end] = part.hidden.float().numpy()
            at = end
        return at

    def batch(self, count: int, hidden: bool) -> Batch:
        here = [array.ctypes.data for array in (self._token, self._embd, self._pos, self._ones, self._seqs, self._wanted)]
        token, embd, *rest = here
        return Batch(count, None if hidden else token, embd if hidden else None, *rest)
