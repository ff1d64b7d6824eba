"""Which models the lean step knows, and what it takes over from transformers' modules of them.

Known are families whose layers are RMSNorm, rotary attention with shared key heads, and a gated perceptron, each with an
optional norm around (Gemma) or bias (Qwen2). A model is told by its type and then by its parts: a layer with a parameter
that no field here takes over is refused, so that nothing is left out silently. Numbers are compared after that (`lean_check.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from runtime.stage import Stage

KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
_GEMMA = ("gemma", "gemma2", "gemma3_text")
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""Ways of scaling whose tables don't depend on how long a sequence has become."""

_NORMS = {
    "input_layernorm": "before_attention",
    "post_attention_layernorm": "before_mlp",
}
_SANDWICH = {
    "input_layernorm": "before_attention",
    "post_attention_layernorm": "after_attention",
    "pre_feedforward_layernorm": "before_mlp",
    "post_feedforward_layernorm": "after_mlp",
}

Act = Callable[[torch.Tensor], torch.Tensor]
ACTS: dict[str, Act] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Unlike(Exception):
    """The model isn't of the common shape; the text says what differs."""


@dataclass
class Matrix:
    """One or several matrices over the same input, to be stored as one: weights [out, in] and biases."""

    parts: list[nn.Linear]

    def joined(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        weights = [part.weight for part in self.parts]
        biases = [part.bias for part in self.parts]
        if any(bias is None for bias in biases) and any(bias is not None for bias in biases):
            raise Unlike("some of the projections have a bias")
        return _cat(weights).detach(), None if biases[0] is None else _cat(biases).detach().clone()


@dataclass
class LayerParts:
    """`norms` by place, effective weights in fp32; `head_norm` [heads + kv_heads, head_dim] of queries and keys; `window` in positions."""

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    norms: dict[str, torch.Tensor]
    head_norm: torch.Tensor | None
    window: int | None
    kind: str


@dataclass
class Decoder:
    """What all layers share."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None
    logit_cap: float | None
    eps: float
    act: Act
    layers: list[LayerParts]
    embed: nn.Module | None
    norm: torch.Tensor | None
    head: Matrix | None
    rotary: Any
    by_kind: bool
    """Whether the rotary module is asked by the layer's kind."""


def decoder_of(stage: Stage) -> Decoder:
    """The parts of a loaded stage; `Unlike` says why it can't be run lean."""
    config, kind = stage.config, str(stage.config.model_type)
    if kind not in KINDS:
        raise Unlike(f"models of type {kind[:32]!r} aren't known to it")
    _check_rope(config)
    if getattr(config, "use_bidirectional_attention", False):
        raise Unlike("its attention looks ahead")
    body = stage.model.get_decoder() if hasattr(stage.model, "get_decoder") else stage.model.model
    offset = 1.0 if kind in _GEMMA else 0.0
    attention = stage.own_layers()[0].self_attn
    act = ACTS.get(str(getattr(config, "hidden_activation", None) or config.hidden_act))
    if act is None:
        raise Unlike("its activation function isn't known")
    return Decoder(
        heads=int(config.num_attention_heads),
        kv_heads=int(config.num_key_value_heads),
        head_dim=int(attention.head_dim),
        scale=float(attention.scaling),
        softcap=getattr(config, "attn_logit_softcapping", None),
        logit_cap=getattr(config, "final_logit_softcapping", None),
        eps=float(config.rms_norm_eps),
        act=act,
        layers=[_layer(config, layer, stage.first + number, offset) for number, layer in enumerate(stage.own_layers())],
        embed=stage.model.get_input_embeddings() if stage.first == 0 else None,
        norm=body.norm.weight.float() + offset if stage.last else None,
        head=Matrix([stage.model.get_output_embeddings()]) if stage.last else None,
        rotary=body.rotary_emb,
        by_kind=kind == "gemma3_text",
    )


def _check_rope(config: Any) -> None:
    given = getattr(config, "rope_parameters", None) or {}
    inner = [one for one in given.values() if isinstance(one, dict)] or [given]
    for one in inner:
        way = str(one.get("rope_type", "default"))
        if way not in _FIXED_ROPE:
            raise Unlike(f"its rotary tables change with the length ({way[:32]!r})")


def _layer(config: Any, layer: Any, number: int, offset: float) -> LayerParts:
    taken: set[str] = set()

    def linears(part: Any, path: str, *names: str) -> Matrix | None:
        found = [getattr(part, name, None) for name in names]
        if not all(isinstance(one, nn.Linear) for one in found):
            return None
        taken.update(f"{path}.{name}.{leaf}" for name in names for leaf in ("weight", "bias"))
        return Matrix(found)

    def need(matrix: Matrix | None, what: str) -> Matrix:
        if matrix is None:
            raise Unlike(f"its layers keep {what} in another way")
        return matrix

    attention, mlp = layer.self_attn, layer.mlp
    places = _SANDWICH if hasattr(layer, "pre_feedforward_layernorm") else _NORMS
    norms = {place: getattr(layer, name).weight.float() + offset for name, place in places.items()}
    taken.update(f"{name}.weight" for name in places)
    head_norm = None
    if hasattr(attention, "q_norm"):
        taken.update(("self_attn.q_norm.weight", "self_attn.k_norm.weight"))
        one_query, one_key = attention.q_norm.weight.float() + offset, attention.k_norm.weight.float() + offset
        head_norm = torch.cat((one_query.expand(config.num_attention_heads, -1), one_key.expand(config.num_key_value_heads, -1)))
    three = linears(attention, "self_attn", "q_proj", "k_proj", "v_proj") or linears(attention, "self_attn", "qkv_proj")
    two = linears(mlp, "mlp", "gate_proj", "up_proj") or linears(mlp, "mlp", "gate_up_proj")
    parts = LayerParts(
        qkv=need(three, "queries, keys and values"),
        out=need(linears(attention, "self_attn", "o_proj"), "the attention's output"),
        gate_up=need(two, "gate and up"),
        down=need(linears(mlp, "mlp", "down_proj"), "down"),
        norms=norms,
        head_norm=head_norm,
        window=_window(config, number),
        kind=_kind(config, number),
    )
    left = {name for name, _held in [*layer.named_parameters(), *layer.named_buffers()]} - taken
    if left:
        raise Unlike(f"its layers have {sorted(left)[0][:64]!r} too")
    return parts


def _kind(config: Any, number: int) -> str:
    kinds = getattr(config, "layer_types", None)
    return str(kinds[number]) if kinds else ""


def _window(config: Any, number: int) -> int | None:
    """How far a layer looks back, itself included; layer types say which do, where there are any (Mistral, Phi3: all do)."""
    window = getattr(config, "sliding_window", None)
    kind = _kind(config, number)
    if kind not in ("", "full_attention", "sliding_attention"):
        raise Unlike(f"its attention is of the kind {kind[:32]!r}")
    return int(window) if window and kind != "full_attention" else None


def _cat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
