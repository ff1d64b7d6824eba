"""The lean step: a decoder of the common shape in as few torch calls as it takes.

Problem: at one token a pass, the transformers forward of a small model spends more time between its matrices than in
them: modules, masks, caches that grow by copying, a norm in seven calls. Choice: the layers' parts are taken out of the
loaded stage (`lean_shape.py`), matrices over the same input become one, in the stored form of the precision (`linear.py`);
keys and values lie in slabs (`kv_slabs.py`); a pass is laid out once (`lean_pass.py`) and then every layer is some
fifteen calls on tensors that exist already. The rotary tables are those that the model's own module gives.

It is believed only after it gave what transformers gives (`lean_check.py`). The reference mode fp32 runs by transformers
itself. For a row by itself the layers may be compiled, elsewhere (`compiled.py`). Where a processor multiplies bf16 number by number whole
stages go through kernels of this project's (`runtime/native/`); these layers stay for all others. Rejected: CUDA graphs (nothing here to
try them on). CUDA and MPS take the same code with the kernels that exist there: untried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import nn

from protocol.errors import BadInput
from runtime.kv_slabs import Place, Shape, Slabs
from runtime.lean_pass import Alone, Heads, Pass, Together, lay_out
from runtime.lean_shape import Decoder, LayerParts, Matrix
from runtime.linear import Linear, make_head, make_linear, make_plain
from runtime.linear_plain import Plain
from runtime.memory import SMALL_HEAD
from runtime.model_runner import Row
from runtime.sliced import Sliced, whole
from runtime.stage import Stage

_TABLE = 512
"""Positions that the rotary tables begin with; they double."""


class Norm:
    """Root mean square over the last dimension, times `weight` (fp32); squares are summed in fp32.

    A layer norm of each row and its negative, whose mean is nought: one call of torch where the sum of squares takes four, which are left
    to the norms of heads. Each row is what it is by itself.
    """

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self.weight, self._width, self._eps = weight, weight.shape[-1], eps
        self._weight = weight * sqrt(self._width)
        self._all_eps = torch.tensor(self._width * eps, device=weight.device)
        self._twice = torch.cat((weight, weight), -1) if weight.dim() == 1 else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._twice is not None:
            both = torch.layer_norm(torch.cat((x, -x), -1), self._twice.shape, self._twice, None, self._eps)
            return both.narrow(1, 0, self._width).contiguous()
        size = torch.linalg.vector_norm(x, 2, -1, True, dtype=torch.float32)
        scaled = x * torch.addcmul(self._all_eps, size, size).rsqrt_()
        return torch.mul(scaled, self._weight, out=torch.empty_like(x, memory_format=torch.contiguous_format))


class Rotary:
    """Tables by layer kind: cosines [positions, 1, width] and sines, the first half negative."""

    def __init__(self, module: Any, by_kind: bool, dtype: torch.dtype, device: torch.device) -> None:
        self._module, self._by_kind = module, by_kind
        self._like = torch.empty(1, 1, 1, dtype=dtype, device=device)
        self._tables: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def at(self, kind: str, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows for `positions`."""
        key = kind if self._by_kind else ""
        cos, sin = self._table(key, max(positions) + 1)
        if len(positions) == 1:
            return cos[positions[0] : positions[0] + 1], sin[positions[0] : positions[0] + 1]
        index = torch.tensor(positions, device=cos.device)
        return cos.index_select(0, index), sin.index_select(0, index)

    def table(self, kind: str, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole tables of a kind, of so many positions at least."""
        return self._table(kind if self._by_kind else "", positions)

    def _table(self, key: str, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        found = self._tables.get(key)
        if found is None or len(found[0]) < positions:
            size = max(_TABLE, 1 << (positions - 1).bit_length())
            numbers = torch.arange(size, device=self._like.device).unsqueeze(0)
            named = {"layer_type": key} if self._by_kind else {}
            cos, sin = self._module(self._like, position_ids=numbers, **named)
            half = sin.shape[-1] // 2
            signed = torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)
            found = self._tables[key] = cos[0].unsqueeze(1).contiguous(), signed.unsqueeze(1)
        return found


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Turns pairs (i, i + width / 2) of `x` [rows, heads, head_dim] in place; what is beyond the tables' width stays."""
    width = cos.shape[-1]
    turned = x if width == x.shape[-1] else x[..., :width]
    swapped = turned.roll(width // 2, -1).mul_(sin)
    torch.addcmul(swapped, turned, cos, out=turned)


class Layer:
    """One layer, its matrices in their stored form."""

    def __init__(self, number: int, parts: LayerParts, decoder: Decoder, precision: str) -> None:
        self._number, self._kind = number, parts.kind
        self._queries, self._width = decoder.heads, decoder.head_dim
        self._rotated = decoder.heads + decoder.kv_heads
        self._act = decoder.act
        made = [_stored(matrix, precision) for matrix in (parts.qkv, parts.out, parts.gate_up, parts.down)]
        self._qkv, self._out, self._gate_up, self._down = made
        self.inner = sum(part.weight.shape[0] for part in parts.gate_up.parts) // 2
        norms = {place: Norm(weight, decoder.eps) for place, weight in parts.norms.items()}
        self._before_attention, self._before_mlp = norms["before_attention"], norms["before_mlp"]
        self._after_attention, self._after_mlp = norms.get("after_attention"), norms.get("after_mlp")
        self._head_norm = None if parts.head_norm is None else Norm(parts.head_norm, decoder.eps)
        self.nbytes = sum(one.nbytes for one in made)

    @property
    def kind(self) -> str:
        return self._kind

    def matrices(self) -> tuple[Linear, Linear, Linear, Linear]:
        """qkv, out, gate and up, down."""
        return self._qkv, self._out, self._gate_up, self._down

    def norms(self) -> dict[str, Norm | None]:
        """By place; None where this kind of layer has none."""
        return {
            "before_attention": self._before_attention,
            "after_attention": self._after_attention,
            "before_mlp": self._before_mlp,
            "after_mlp": self._after_mlp,
            "heads": self._head_norm,
        }

    def __call__(self, x: torch.Tensor, groups: list[Alone | Together], tables: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Adds to `x` [rows, hidden] what this layer adds."""
        heads = self._qkv(self._before_attention(x)).view(len(x), -1, self._width)
        rotated = heads.narrow(1, 0, self._rotated)
        if self._head_norm is not None:
            rotated.copy_(self._head_norm(rotated))
        rotate(rotated, *tables[self._kind])
        added = self._out(self._attended(groups, heads))
        x += added if self._after_attention is None else self._after_attention(added)
        gate, up = self._gate_up(self._before_mlp(x)).chunk(2, -1)
        added = self._down(self._act(gate).mul_(up))
        x += added if self._after_mlp is None else self._after_mlp(added)

    def _attended(self, groups: list[Alone | Together], heads: torch.Tensor) -> torch.Tensor:
        """[rows, heads * head_dim]."""
        if len(heads) == 1:
            return groups[0].single(self._number, heads)
        q, new = heads[:, : self._queries].contiguous(), heads[:, self._queries :].contiguous()
        for group in groups:
            group.write(self._number, new)
        found = [group.attend(self._number, q) for group in groups]
        return (found[0] if len(found) == 1 else torch.cat(found)).reshape(len(heads), -1)


def making_layers(decoder: Decoder, precision: str) -> Sliced[list[Layer]]:
    """A layer at a time: to store its matrices takes longer than to read them."""
    made: list[Layer] = []
    for number, parts in enumerate(decoder.layers):
        with torch.inference_mode():
            made.append(Layer(number, parts, decoder, precision))
        yield
    return made


OneRow = Callable[[torch.Tensor, Alone | Together, dict[str, tuple[torch.Tensor, torch.Tensor]]], torch.Tensor]
"""`x` [1, hidden], its group, the tables by kind: to [1, hidden]."""


@dataclass
class _LaidOut:
    """A pass of one row."""

    place: Place
    position: int
    group: Alone
    laid: Pass


class LeanRunner:
    """A `ModelRunner` over the parts of a stage."""

    batched = True
    fixed_bytes = 0

    def __init__(self, stage: Stage, decoder: Decoder, precision: str, steps: list[Layer] | None = None) -> None:
        """`steps`: what `making_layers` made, where that is done by slices."""
        self.first, self.end, self.layers = stage.first, stage.end, stage.layers
        self.hidden, self.vocabulary, self.dtype, self.precision = stage.hidden, stage.vocabulary, stage.dtype, precision
        self._steps = whole(making_layers(decoder, precision)) if steps is None else steps
        with torch.inference_mode():
            self._norm = None if decoder.norm is None else Norm(decoder.norm, decoder.eps)
            self._head = _head(decoder, precision)
        self._embed, self._logit_cap, self.decoder = decoder.embed, decoder.logit_cap, replace(decoder, layers=[], embed=None, head=None)
        self.keep_tails, self.tails = False, list[torch.Tensor]()
        self.compiled: OneRow | None = None
        """Runs all layers for a row by itself, where somebody compiled them (runtime/compiled.py)."""
        self.kept = nn.ModuleList([] if decoder.embed is None else [decoder.embed])
        """What still lies on the stage's tensors."""
        self._device = device = stage.device
        shape = Shape(len(decoder.layers), decoder.kv_heads, decoder.head_dim, stage.dtype, device)
        windows = tuple(parts.window for parts in decoder.layers)
        group = decoder.heads // decoder.kv_heads
        self._heads = Heads(decoder.kv_heads, group, decoder.head_dim, decoder.scale, decoder.softcap, windows)
        self._kinds = {parts.kind for parts in decoder.layers}
        self._rotary = Rotary(decoder.rotary, decoder.by_kind, stage.dtype, device)
        self._slabs = Slabs(shape)
        self._laid_out: dict[int, _LaidOut] = {}
        """By slot, of those whose last pass was one row by itself."""
        self.token_bytes = shape.token_bytes
        embedding = getattr(decoder.embed, "weight", None)
        shared = isinstance(self._head, Plain) and decoder.embed is not None
        held = 0 if self._head is None or shared else self._head.nbytes
        self.weight_bytes = sum(step.nbytes for step in self._steps) + held + (0 if embedding is None else embedding.nbytes)

    def open(self, slots: int, positions: int) -> None:
        """Room is made as sequences grow."""

    @property
    def steps(self) -> list[Layer]:
        """Its layers in order."""
        return self._steps

    @property
    def embeds(self) -> bool:
        return self._embed is not None

    @property
    def tops(self) -> bool:
        """Whether it gives logits."""
        return self._head is not None

    @property
    def rotated(self) -> int:
        """Numbers of a head that positions turn."""
        kind = next(iter(self._kinds))
        return int(self._rotary.at(kind, [0])[0].shape[-1])

    def release(self, slot: int) -> None:
        self._laid_out.pop(slot, None)
        self._slabs.release(slot)

    def crop(self, slot: int, position: int) -> None:
        self._laid_out.pop(slot, None)
        self._slabs.crop(slot, position)

    def run(self, rows: list[Row], hidden: torch.Tensor | None) -> torch.Tensor:
        with torch.inference_mode():
            return self._run(rows, hidden)

    def _run(self, rows: list[Row], hidden: torch.Tensor | None) -> torch.Tensor:
        places = [self._slabs.follow(row.slot, row.position, row.count) for row in rows]
        laid = self._lay_out(rows, places)
        x = self._enter(rows, hidden, laid)
        tables = {kind: self._rotary.at(kind, laid.positions) for kind in self._kinds}
        if len(x) == 1 and self.compiled is not None:
            x = self.compiled(x, laid.groups[0], tables)
        else:
            for step in self._steps:
                step(x, laid.groups, tables)
        for row, place in zip(rows, places, strict=True):
            place.length = row.position + row.count
        return self._leave(rows, x, laid)

    def _lay_out(self, rows: list[Row], places: list[Place]) -> Pass:
        """A row that follows what it was by itself in the last pass takes that over: to lay out anew takes as long as half a layer."""
        row, place = rows[0], places[0]
        last = self._laid_out.pop(row.slot, None)
        if len(rows) > 1 or row.count > 1:
            for other in rows[1:] if self._laid_out else ():
                self._laid_out.pop(other.slot, None)  # it would keep room that its sequence may leave now
            return lay_out(rows, places, self._heads, self._slabs.shape)
        if last is not None and last.place is place and last.position + 1 == row.position and last.group.follow():
            last.laid.positions[0] = last.position = row.position
        else:
            laid = lay_out(rows, places, self._heads, self._slabs.shape)
            [group] = laid.groups
            if isinstance(group, Together):
                return laid
            last = _LaidOut(place, row.position, group, laid)
        self._laid_out[row.slot] = last
        return last.laid

    def _enter(self, rows: list[Row], hidden: torch.Tensor | None, laid: Pass) -> torch.Tensor:
        """[tokens, hidden] in this pass's order, not the caller's tensor."""
        if self._embed is not None:
            words: list[int] = []
            for number in laid.order:
                tokens = rows[number].tokens
                if tokens is None or len(tokens) != rows[number].count:
                    raise BadInput("step: tokens go to the first stage, one for each position")
                words += tokens
            return self._embed(torch.tensor(words, device=self._device))
        if hidden is None or len(hidden) != len(laid.positions):
            raise BadInput("step: hidden states go to a later stage, one for each position")
        if len(rows) == 1:
            return hidden.to(self._device, self.dtype, copy=True)
        starts, at = [], 0
        for row in rows:
            starts.append(at)
            at += row.count
        source = [starts[number] + step for number in laid.order for step in range(rows[number].count)]
        return hidden.to(self._device, self.dtype).index_select(0, torch.tensor(source, device=self._device))

    def _leave(self, rows: list[Row], x: torch.Tensor, laid: Pass) -> torch.Tensor:
        begins = dict(zip(laid.order, laid.offsets, strict=True))
        wanted: list[int] = []
        for number, row in enumerate(rows):
            asked = row.count if self._head is None else min(row.logits, row.count)
            end = begins[number] + row.count
            wanted += range(end - asked, end)
        tails = x.cpu() if self.keep_tails else x
        self.tails = [tails[begins[number] : begins[number] + row.count] for number, row in enumerate(rows)] if self.keep_tails else []
        if wanted != list(range(len(x))):
            x = x.index_select(0, torch.tensor(wanted, dtype=torch.long, device=self._device))
        if self._head is None or self._norm is None:
            return x.cpu()
        if not wanted:
            return torch.empty(0, self.vocabulary, dtype=x.dtype)
        logits = self._head(self._norm(x))
        return (logits if self._logit_cap is None else logits.div_(self._logit_cap).tanh_().mul_(self._logit_cap)).cpu()


def _stored(matrix: Matrix, precision: str) -> Linear:
    """A matrix that stays as it came would keep the whole group it came in, and of that most was joined, which is a copy."""
    weight, bias = matrix.joined()
    made = make_linear(weight, bias, precision)
    if isinstance(made, Plain) and len(matrix.parts) == 1 and weight.device.type == "cpu":
        made.move_out()
    return made


def _head(decoder: Decoder, precision: str) -> Linear | None:
    """In bf16 a large head that is the embedding stays where that lies."""
    if decoder.head is None:
        return None
    weight, bias = decoder.head.joined()
    embedding = getattr(decoder.embed, "weight", None)
    tied = embedding is not None and embedding.data_ptr() == weight.data_ptr()
    return make_plain(weight, bias) if tied and precision == "bf16" and weight.nbytes > SMALL_HEAD else make_head(weight, bias, precision)
