"""Layers [first, end) of a model as a GGUF file that llama.cpp takes for a whole small model.

Names come from gguf's own tables; layers are counted from 0 again, since llama.cpp knows no other. A stage before the last gets
a norm and a vocabulary of nothing, which its graph never reaches; the last one's head lies under the embedding's name,
which llama.cpp reads as tied. Queries and keys of the Llama kind turn their halves into pairs, as its rotary wants them.

What a config asks beyond the plain shape (other activations, sliding windows, rotary scalings without a table here) is
refused with the reason: torch runs it then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from protocol.errors import BadInput
from runtime.engine_choice import ARCHITECTURES

TYPES = {"bf16": "BF16", "q8_0": "Q8_0", "q4_1": "Q4_1"}
"""Precisions of a session, and the types of its matrices; embedding and head have 8 bits at least."""

BITS = {"bf16": 16.0, "q8_0": 8.5, "q4_1": 5.0}
_BLOCK = 32
_NO_WORDS = 32
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Shape:
    """What the file says of the model, read from its config once and checked."""

    architecture: str
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    epsilon: float
    theta: float
    words: int
    rope: dict[str, Any]

    @classmethod
    def of(cls, config: Any) -> Shape:
        """`BadInput` with the reason where llama.cpp would run something else than the config says."""
        kind = str(getattr(config, "model_type", ""))
        if kind not in ARCHITECTURES:
            raise BadInput(f"llama.cpp: models of type {kind[:32]!r} aren't cut into its form here")
        hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
        rope = dict(getattr(config, "rope_parameters", None) or {})
        shape = cls(
            architecture=ARCHITECTURES[kind],
            hidden=hidden,
            inner=int(config.intermediate_size),
            heads=heads,
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
            context=int(config.max_position_embeddings),
            epsilon=float(config.rms_norm_eps),
            theta=float(rope.get("rope_theta", 10_000.0)),
            words=int(config.vocab_size),
            rope=rope,
        )
        _refuse(config, shape)
        return shape


def _refuse(config: Any, shape: Shape) -> None:
    kind = shape.rope.get("rope_type", "default")
    windows = [one for one in (getattr(config, "layer_types", None) or ()) if one != "full_attention"]
    window = getattr(config, "sliding_window", None) if not getattr(config, "layer_types", None) else None
    rules = (
        (getattr(config, "hidden_act", "silu") == "silu", "another activation than silu"),
        (kind in ("default", "linear", "llama3"), f"rotary scaling {str(kind)[:16]!r}"),
        (float(shape.rope.get("partial_rotary_factor", 1.0)) == 1.0, "a rotary over a part of each head"),
        (not windows and (window is None or window >= shape.context), "sliding windows"),
        (not getattr(config, "mlp_bias", False), "biases in the feed-forward"),
        (shape.hidden % _BLOCK == 0 and shape.inner % _BLOCK == 0, f"sizes that aren't multiples of {_BLOCK}"),
        (shape.heads % shape.kv_heads == 0 and shape.head_dim % 2 == 0, "heads that don't divide"),
    )
    for holds, what in rules:
        if not holds:
            raise BadInput(f"llama.cpp: {what} isn't cut into its form here")


@dataclass(frozen=True)
class _Tensor:
    name: str
    type: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    data: Callable[[], Array]


def write_stage(path: Path, shape: Shape, tensors: Mapping[str, torch.Tensor], span: tuple[int, int], layers: int, precision: str) -> int:
    """Writes the file and returns the bytes of its tensors; tensors are converted one at a time. `BadInput` for a tensor without a name."""
    first, end = span
    writer = gguf.GGUFWriter(path, shape.architecture)
    last = end == layers
    _describe(writer, shape, end - first, shape.words if last else _NO_WORDS)
    listed = list(_tensors(shape, tensors, first, end, layers, precision))
    total = 0
    for one in listed:
        stored = gguf.quant_shape_to_byte_shape(one.shape, one.type) if one.type not in _PLAIN else one.shape
        size = math.prod(stored) * (1 if one.type not in _PLAIN else 4)
        kind = np.dtype(np.uint8) if one.type not in _PLAIN else np.dtype(np.float32)
        writer.add_tensor_info(one.name, stored, kind, size, raw_dtype=one.type)
        total += size
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for one in listed:
        writer.write_tensor_data(one.data())
    writer.close()
    return total


_PLAIN = (gguf.GGMLQuantizationType.F32,)


def _describe(writer: gguf.GGUFWriter, shape: Shape, blocks: int, words: int) -> None:
    writer.add_block_count(blocks)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.theta)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_vocab_size(words)
    writer.add_tokenizer_model("no_vocab")
    if shape.rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(shape.rope["factor"]))


def _tensors(shape: Shape, tensors: Mapping[str, torch.Tensor], first: int, end: int, layers: int, precision: str) -> Iterator[_Tensor]:
    matrix = gguf.GGMLQuantizationType[TYPES[precision]]
    words = matrix if precision != "q4_1" else gguf.GGMLQuantizationType.Q8_0
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[shape.architecture.upper()], layers)
    yield from _ends(shape, tensors, first == 0, end == layers, words)
    for name, tensor in tensors.items():
        parts = name.split(".")
        if len(parts) < 4 or parts[1] != "layers" or not first <= int(parts[2]) < end:
            continue
        parts[2] = str(int(parts[2]) - first)
        found = names.get_name(".".join(parts), try_suffixes=(".weight", ".bias"))
        if found is None:
            raise BadInput(f"llama.cpp has no place for the tensor {name[:96]!r}")
        yield _matrix(found, _turned(shape, parts[-2], tensor), matrix)
    if (table := _rotary(shape)) is not None:
        yield _vector("rope_freqs.weight", table)


def _ends(
    shape: Shape, tensors: Mapping[str, torch.Tensor], first: bool, last: bool, words: gguf.GGMLQuantizationType
) -> Iterator[_Tensor]:
    if not last:
        yield _vector("token_embd.weight", torch.zeros(_NO_WORDS, shape.hidden))
        yield _vector("output_norm.weight", torch.ones(shape.hidden))
        return
    embedding, norm = tensors.get("model.embed_tokens.weight"), tensors.get("model.norm.weight")
    head = tensors.get("lm_head.weight", embedding)
    if head is None or norm is None or (first and embedding is None):
        raise BadInput("llama.cpp: the last stage's head or norm isn't here")
    if first and embedding is not None:
        yield _matrix("token_embd.weight", embedding, words)
    if not first or head is not embedding:
        yield _matrix("output.weight" if first else "token_embd.weight", head, words)
    yield _vector("output_norm.weight", norm)


def _vector(name: str, tensor: torch.Tensor) -> _Tensor:
    return _Tensor(name, gguf.GGMLQuantizationType.F32, tuple(tensor.shape), lambda: tensor.float().numpy())


def _matrix(name: str, tensor: torch.Tensor, kind: gguf.GGMLQuantizationType) -> _Tensor:
    """Vectors (norms, biases) stay in full precision, as llama.cpp's own tools leave them."""
    if tensor.ndim == 1:
        return _vector(name, tensor)
    return _Tensor(name, kind, tuple(tensor.shape), lambda: gguf.quants.quantize(tensor.float().numpy(), kind))


def _turned(shape: Shape, part: str, tensor: torch.Tensor) -> torch.Tensor:
    heads = {"q_proj": shape.heads, "k_proj": shape.kv_heads}.get(part)
    if shape.architecture != "llama" or heads is None:
        return tensor
    half = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, 2, half, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _rotary(shape: Shape) -> torch.Tensor | None:
    """Llama 3's scaling as the divisors of each frequency (transformers' `modeling_rope_utils`)."""
    if shape.rope.get("rope_type") != "llama3":
        return None
    factor, low, high = (float(shape.rope[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    origin = float(shape.rope["original_max_position_embeddings"])
    lengths = 2 * math.pi * shape.theta ** (torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim)
    smooth = ((origin / lengths - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def embedded(rows: torch.Tensor, precision: str) -> torch.Tensor:
    """Embedding rows as a file of this precision would hold them, so that a stage begins with what the whole model would."""
    if precision == "bf16":
        return rows.float()
    kind = gguf.GGMLQuantizationType.Q8_0
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(rows.float().numpy(), kind), kind))
