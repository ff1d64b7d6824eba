"""What a layer is like, as far as a compiled one depends on it: numbers and names alone, never weights. Pure."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from protocol.errors import BadInput

ACTS = ("silu", "swish", "gelu", "gelu_pytorch_tanh")
KINDS = ("plain", "int8", "int4")
PARTS = ("enter", "leave")
"""A layer is compiled in two: what comes before its attention, and what comes after."""
_MOST = 1 << 20
_PIECE = Path(__file__).with_name("compiled_piece.py")


class LayerShape(msgspec.Struct, frozen=True, kw_only=True):
    """Of all layers that share one compiled form. `rotated` numbers of a head that positions turn; `stored` as `KINDS` of the matrices qkv,
    out, gate and up, down; `biased` which of them add something; `sandwich`: norms after attention and perceptron too."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    rotated: int
    eps: float
    act: str
    stored: tuple[str, str, str, str]
    biased: tuple[bool, bool, bool, bool]
    head_norm: bool = False
    sandwich: bool = False

    def check(self) -> None:
        """`BadInput` names what can't be: this comes from another process."""
        numbers = {"hidden": self.hidden, "heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim, "inner": self.inner}
        for name, number in numbers.items():
            if not 1 <= number <= _MOST:
                raise BadInput(f"a layer's {name} is 1 to {_MOST}, not {number}")
        if not 2 <= self.rotated <= self.head_dim or self.rotated % 2 or self.heads % self.kv_heads:
            raise BadInput("a layer's heads don't share key heads, or positions turn more than a head")
        if self.act not in ACTS or any(one not in KINDS for one in self.stored) or not 0 < self.eps < 1:
            raise BadInput("a layer's activation, stored form or eps isn't one that can be compiled")

    def widths(self) -> tuple[tuple[int, int], ...]:
        """[out, in] of qkv, out, gate and up, down."""
        queries, all_heads = self.heads * self.head_dim, (self.heads + 2 * self.kv_heads) * self.head_dim
        return (all_heads, self.hidden), (self.hidden, queries), (2 * self.inner, self.hidden), (self.hidden, self.inner)


def name_of(shape: LayerShape, torch_version: str, capability: str) -> str:
    """Of the compiled form: it changes with the shape, with torch, with what the processor can do and with what is compiled."""
    source = hashlib.blake2b(_PIECE.read_bytes()).digest()
    told = msgspec.msgpack.encode([msgspec.to_builtins(shape), torch_version, capability])
    return hashlib.blake2b(told + source, digest_size=16).hexdigest()
