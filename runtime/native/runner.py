"""A stage by compiled kernels: a whole pass in one call, each row of it what it would be by itself.

Problem: at one token a pass, torch's kernels for 8 and 4 bits and what Python does between them take several times as long as it takes to
read the weights, and many rows go through others, whose sums come in another order. Choice: one function, compiled for this machine
(`runtime/native/build.py`), does what lies between a stage's input and its output; hidden states, sums and weights are fp32 within it, keys
and values bf16. A row's result depends on nothing but itself and what it sees: not on who else is in the pass, how a prompt was cut, how
many threads there are, where the model is cut, nor, where a processor has fused multiplication, on the processor.

It is believed after the same comparison as the lean step (`runtime/lean_check.py`), which stays for other devices and processors and
for what these kernels don't know: `Unlike` says what.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from protocol.errors import BadInput
from runtime import lean_shape
from runtime.kv_slabs import Place, Shape, Slabs
from runtime.lean import Rotary
from runtime.lean_shape import Decoder, LayerParts, Unlike
from runtime.linear import GROUP
from runtime.model_runner import OneRow, Row
from runtime.native import fields as f
from runtime.native.crew import Crew, Fields, address_of, crew, fields, put
from runtime.native.stored import LANES, Stored, store, stored
from runtime.processor import multiplies_bf16
from runtime.sliced import Sliced
from runtime.stage import Stage

MOST_ROWS = 96
"""In one call: what it computes in is bounded, and still near when the next matrix comes."""
_ACTS = {"silu": f.SILU, "swish": f.SILU, "gelu_pytorch_tanh": f.GELU_TANH}
_PRECISIONS = ("bf16", "int8", "int4")

Layer = tuple[Stored, Stored, Stored, Stored, dict[str, torch.Tensor], torch.Tensor | None]
"""Its matrices, its norms by place, the norm of its heads."""


def making(stage: Stage, decoder: Decoder, precision: str) -> Sliced[NativeRunner]:
    """A layer at a time; `Unlike` where this machine or these layers can't be run so."""
    if multiplies_bf16():
        raise Unlike("this processor's own instructions for bf16 are faster for many rows")
    team = crew()
    if isinstance(team, str):
        raise Unlike(team)
    _check(stage, decoder, precision)
    layers: list[Layer] = []
    for parts in decoder.layers:
        with torch.inference_mode():
            layers.append(_stored(parts, precision))
        yield
    return NativeRunner(stage, decoder, precision, layers, team)


def _check(stage: Stage, decoder: Decoder, precision: str) -> None:
    name = next((name for name, act in lean_shape.ACTS.items() if act is decoder.act), "")
    if precision not in _PRECISIONS or stage.dtype != torch.bfloat16 or stage.device.type != "cpu":
        raise Unlike("the kernels are for bf16 on a CPU")
    if name not in _ACTS:
        raise Unlike("the kernels don't know its activation function")
    if stage.hidden % (2 * LANES) or decoder.head_dim % LANES or (decoder.head is not None and stage.vocabulary % LANES):
        raise Unlike(f"its widths aren't multiples of {LANES}")


def _stored(parts: LayerParts, precision: str) -> Layer:
    four = tuple(store(matrix, precision) for matrix in (parts.qkv, parts.out, parts.gate_up, parts.down))
    qkv, out, gate_up, down = four
    inner, block = gate_up.rows // 2, max(LANES, gate_up.kind - f.INT4)
    if any(one.rows % LANES or one.width % (LANES if one.kind == f.BF16 else 2 * LANES) for one in four) or inner % block:
        raise Unlike(f"its matrices aren't multiples of {LANES}")
    return qkv, out, gate_up, down, {place: weight.contiguous() for place, weight in parts.norms.items()}, parts.head_norm


def _bits(number: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", number))[0])


class _Tables:
    """Cosines and sines of each kind in fp32, from the model's own module."""

    def __init__(self, rotary: Rotary, kinds: list[str]) -> None:
        self._rotary, self._kinds = rotary, kinds
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.positions = 0
        self.reach(1)

    def reach(self, positions: int) -> None:
        if positions <= self.positions:
            return
        both = [self._rotary.table(kind, positions) for kind in self._kinds]
        self._held = [(cos.float().flatten(1).contiguous(), sin.float().flatten(1).contiguous()) for cos, sin in both]
        self.positions = min(len(cos) for cos, _ in self._held)
        self.fields = [one.data_ptr() for pair in self._held for one in pair]

    @property
    def rotated(self) -> int:
        return int(self._held[0][0].shape[1])


class _Rooms:
    """fp32 for up to so many rows of a pass, and for scores of so many positions for each thread."""

    def __init__(self, widths: list[int], threads: int) -> None:
        self._widths, self._threads = widths, threads
        self._short = _short_floats(max(widths))
        self._rows = self._positions = 0
        self._all, self._scores = torch.empty(0), torch.empty(0)
        self.fields: list[int] = []

    def reach(self, rows: int, positions: int) -> None:
        """Makes room where there isn't enough."""
        if rows <= self._rows and positions <= self._positions:
            return
        if rows > self._rows:
            self._rows = MOST_ROWS if rows > 8 else 8 if rows > 1 else 1
            self._all = torch.empty(self._rows * (sum(self._widths) + self._short))
        if positions > self._positions:
            self._positions = 1 << max(9, (positions - 1).bit_length())
            self._scores = torch.empty(self._threads * (self._positions + LANES))
        ends = accumulate((4 * width * self._rows for width in self._widths), initial=self._all.data_ptr())
        self.fields = [*ends, self._scores.data_ptr(), self._positions + LANES]

    def hidden(self, rows: int) -> torch.Tensor:
        width = self._widths[0]
        return self._all[: rows * width].view(rows, width)


def _short_floats(width: int) -> int:
    """What a shortened row takes at most, counted in fp32 (`runtime/native/shorten.py`)."""
    return (32 + (4 * -(-width // GROUP) + 31) // 32 * 32 + 2 * width + 3) // 4


class NativeRunner:
    """A `ModelRunner`."""

    batched = True
    fixed_bytes = 0

    def __init__(self, stage: Stage, decoder: Decoder, precision: str, layers: list[Layer], team: Crew) -> None:
        self.first, self.end, self.layers = stage.first, stage.end, stage.layers
        self.hidden, self.vocabulary, self.dtype, self.precision = stage.hidden, stage.vocabulary, stage.dtype, precision
        self.keep_tails, self.tails = False, list[torch.Tensor]()
        self._embed = decoder.embed
        self.kept = nn.ModuleList([] if decoder.embed is None else [decoder.embed])
        shape = Shape(len(layers), decoder.kv_heads, decoder.head_dim, stage.dtype)
        self._slabs, self.token_bytes = Slabs(shape), shape.token_bytes
        self._team = team
        with torch.inference_mode():
            kinds = sorted({parts.kind for parts in decoder.layers}) if decoder.by_kind else [decoder.layers[0].kind]
            self._tables = _Tables(Rotary(decoder.rotary, decoder.by_kind, stage.dtype, stage.device), kinds)
            self._head, self._tied = _head(decoder, precision)
        self._check_tables(decoder)
        heads = decoder.heads + 2 * decoder.kv_heads
        inner = layers[0][2].rows // 2
        if any(one[2].rows != 2 * inner for one in layers):
            raise Unlike("its layers aren't equally wide")
        wide = decoder.head_dim
        self._rooms = _Rooms([self.hidden, self.hidden, heads * wide, decoder.heads * wide, 2 * inner, inner, self.hidden], team.threads)
        self._held = (layers, decoder.norm)
        self._plan = _plan(decoder, layers, self._head, kinds, self.hidden, self._tables.rotated, inner, self.vocabulary)
        self._places, self._wanted = fields(f.PLACE_FIELDS * MOST_ROWS), fields(MOST_ROWS)
        self._places_address, self._wanted_address = address_of(self._places), address_of(self._wanted)
        self._one = OneRow.make(*((self.hidden, self.dtype) if self._head is None else (self.vocabulary, torch.float32)))
        self._one_address = self._one.rows.data_ptr()
        embedding = getattr(decoder.embed, "weight", None)
        self._plain_embed = _is_plain(decoder.embed, self.vocabulary, self.hidden)
        self._input = torch.empty(0)
        self.weight_bytes = sum(one.nbytes for layer in layers for one in layer[:4])
        self.weight_bytes += (0 if self._head is None else self._head.nbytes) + (0 if embedding is None else embedding.nbytes)
        self.decoder = replace(decoder, layers=[], embed=None, head=None)

    def _check_tables(self, decoder: Decoder) -> None:
        rotated = self._tables.rotated
        if rotated % (2 * LANES) or rotated > decoder.head_dim or len(self._tables.fields) > 2 * f.MOST_TABLES:
            raise Unlike("the kernels can't turn its heads")

    def open(self, slots: int, positions: int) -> None:
        """Room is made as sequences grow."""

    def release(self, slot: int) -> None:
        self._slabs.release(slot)

    def crop(self, slot: int, position: int) -> None:
        self._slabs.crop(slot, position)

    def run(self, rows: list[Row], hidden: torch.Tensor | None) -> torch.Tensor:
        with torch.inference_mode():
            return self._run(rows, hidden)

    def run_one(self, row: Row, hidden: torch.Tensor | None) -> OneRow:
        """As `run` for one position, without making a tensor."""
        place = self._slabs.follow(row.slot, row.position, 1)
        given = self._given_one(row, hidden)
        self._tables.reach(row.position + 1)
        put(self._places, 0, _where(place, row.position))
        self._wanted[0] = 0
        told = self._launch(1, given, 1 if self._head is None or row.logits else 0, self._one_address, row.position + 1)
        place.length = row.position + 1
        self._one.finite = self._head is None and not told[f.WRONG]
        return self._one

    def _given_one(self, row: Row, hidden: torch.Tensor | None) -> int:
        """Where the row's input lies."""
        embed = self._embed
        if embed is None:
            if hidden is None or hidden.numel() != self.hidden or hidden.dtype is not self.dtype or not hidden.is_contiguous():
                hidden = self._given([row], hidden)
            self._input = hidden
            return int(hidden.data_ptr())
        start = int(embed.weight.data_ptr())
        if self._tied:
            self._plan[f.HEAD + f.WEIGHT] = start
        token = row.tokens[0] if self._plain_embed and row.tokens is not None and len(row.tokens) == 1 else -1
        if 0 <= token < self.vocabulary:
            return start + 2 * self.hidden * token
        with torch.inference_mode():
            self._input = self._given([row], hidden)
        return int(self._input.data_ptr())

    def _run(self, rows: list[Row], hidden: torch.Tensor | None) -> torch.Tensor:
        places = [self._slabs.follow(row.slot, row.position, row.count) for row in rows]
        given = self._given(rows, hidden)
        if self._tied and self._embed is not None:
            self._plan[f.HEAD + f.WEIGHT] = self._embed.weight.data_ptr()
        self._tables.reach(max(row.position + row.count for row in rows))
        wanted = self._wants(rows)
        out = self._passes(rows, places, given, wanted)
        for row, place in zip(rows, places, strict=True):
            place.length = row.position + row.count
        return out

    def _given(self, rows: list[Row], hidden: torch.Tensor | None) -> torch.Tensor:
        """bf16 [tokens, hidden], in the rows' order."""
        count = sum(row.count for row in rows)
        if self._embed is not None:
            words: list[int] = []
            for row in rows:
                if row.tokens is None or len(row.tokens) != row.count:
                    raise BadInput("step: tokens go to the first stage, one for each position")
                words += row.tokens
            found: torch.Tensor = self._embed(torch.tensor(words))
            return found.contiguous()
        if hidden is None or tuple(hidden.shape) != (count, self.hidden):
            raise BadInput("step: hidden states go to a later stage, one for each position")
        return hidden.to(self.dtype).contiguous()

    def _wants(self, rows: list[Row]) -> list[int]:
        """Numbers of the pass's rows whose results somebody asked for."""
        wanted: list[int] = []
        end = 0
        for row in rows:
            end += row.count
            wanted += range(end - (row.count if self._head is None else min(row.logits, row.count)), end)
        return wanted

    def _passes(self, rows: list[Row], places: list[Place], given: torch.Tensor, wanted: list[int]) -> torch.Tensor:
        """Results of the wanted rows; `tails` where they are kept."""
        count = len(given)
        shape = (len(wanted), self.hidden if self._head is None else self.vocabulary)
        out = torch.empty(shape, dtype=self.dtype if self._head is None else torch.float32)
        stand = [(place, row.position + step) for row, place in zip(rows, places, strict=True) for step in range(row.count)]
        tails, done = [], 0
        for begin in range(0, count, MOST_ROWS):
            end = min(count, begin + MOST_ROWS)
            mine = [one - begin for one in wanted if begin <= one < end] if count > MOST_ROWS else wanted
            self._pass(stand[begin:end], given[begin:end], mine, out[done : done + len(mine)])
            done += len(mine)
            if self.keep_tails:
                tails.append(self._rooms.hidden(end - begin).to(self.dtype))
        self.tails = list(torch.cat(tails).split([row.count for row in rows])) if tails else []
        return out

    def _pass(self, stand: list[tuple[Place, int]], given: torch.Tensor, wanted: list[int], out: torch.Tensor) -> None:
        at = 0
        room = self._places
        for place, position in stand:
            put(room, at, _where(place, position))
            at += f.PLACE_FIELDS
        put(self._wanted, 0, wanted)
        self._launch(len(stand), given.data_ptr(), len(wanted), out.data_ptr(), max(position for _, position in stand) + 1)

    def _launch(self, rows: int, given: int, wanted: int, out: int, positions: int) -> Fields:
        """The pass's fields after it. Places and wanted rows are written; `given` and `out` are addresses, `positions` the most that a row
        sees."""
        self._rooms.reach(rows, positions)
        one = self._team.next_pass()
        told = one.given
        put(told, f.COUNT, [rows, given, self._wanted_address, wanted, out, self._places_address])
        put(told, f.X, self._rooms.fields)
        put(told, f.TABLES, self._tables.fields)
        told[f.WRONG] = 0
        self._team.lead(one, self._plan)
        return told


def _where(place: Place, position: int) -> tuple[int, int, int, int, int]:
    """The place's fields, bytes by the slab's strides."""
    slab = place.slab
    sides, layers, each = slab.strides
    return slab.address + each * place.index, layers, sides, slab.room, position


def _is_plain(embed: Any, vocabulary: int, hidden: int) -> bool:
    """Whether a token's row of bf16 is all that it gives."""
    return (
        type(embed) is nn.Embedding
        and embed.max_norm is None
        and tuple(embed.weight.shape) == (vocabulary, hidden)
        and embed.weight.dtype == torch.bfloat16
        and embed.weight.is_contiguous()
    )


def _head(decoder: Decoder, precision: str) -> tuple[Stored | None, bool]:
    """In 8 bits where the rest has 4; and whether it is the embedding: no tensor then, since that is moved once a stage is loaded, and what
    it lay on goes."""
    if decoder.head is None:
        return None, False
    weight, bias = decoder.head.joined()
    embedding = getattr(decoder.embed, "weight", None)
    shared = precision == "bf16" and embedding is not None and embedding.data_ptr() == weight.data_ptr()
    if shared:
        return Stored(f.BF16, torch.empty(0, dtype=weight.dtype), None, bias, *weight.shape), True
    return stored(weight.clone() if precision == "bf16" else weight, bias, "int8" if precision == "int4" else precision), False


def _plan(
    decoder: Decoder, layers: list[Layer], head: Stored | None, kinds: list[str], hidden: int, rotated: int, inner: int, vocabulary: int
) -> Any:
    plan = fields(f.STAGE_FIELDS + f.LAYER_FIELDS * len(layers))
    act = next(_ACTS[name] for name, act in lean_shape.ACTS.items() if act is decoder.act)
    put(plan, 0, [hidden, decoder.heads, decoder.kv_heads, decoder.head_dim, rotated, inner, len(layers), act, vocabulary])
    put(plan, f.EPS, [_bits(one or 0.0) for one in (decoder.eps, decoder.scale, decoder.softcap, decoder.logit_cap)])
    plan[f.NORM] = 0 if decoder.norm is None else decoder.norm.data_ptr()
    if head is not None:
        put(plan, f.HEAD, head.fields())
    for number, (layer, parts) in enumerate(zip(layers, decoder.layers, strict=True)):
        at = f.STAGE_FIELDS + f.LAYER_FIELDS * number
        for place, where in _NORMS.items():
            plan[at + where] = layer[4][place].data_ptr() if place in layer[4] else 0
        plan[at + f.HEAD_NORM] = 0 if layer[5] is None else layer[5].data_ptr()
        plan[at + f.WINDOW] = parts.window or 0
        plan[at + f.TABLE] = kinds.index(parts.kind) if len(kinds) > 1 else 0
        for where, matrix in zip((f.QKV, f.OUT, f.GATE_UP, f.DOWN), layer[:4], strict=True):
            put(plan, at + where, matrix.fields())
    return plan


_NORMS = {
    "before_attention": f.BEFORE_ATTENTION,
    "after_attention": f.AFTER_ATTENTION,
    "before_mlp": f.BEFORE_MLP,
    "after_mlp": f.AFTER_MLP,
}
