"""A range of a model's layers, run by the model's own transformers class.

Problem: hundreds of architectures, each with its own forward; a pipeline needs layers [first, end) of any of them.
Choice: build the class on the meta device (no memory), keep its forward, and replace the layers outside of the range by
placeholders that keep their index. The one at first-1 swaps in the hidden state received, whatever came out of the
embedding; the one at `end` ends the forward by an exception that carries the hidden state. Only what is given becomes
memory. Weights outside of the layers (embedding, norm, head) are needed or not by what the forward really calls: a
module that runs without its weight is reported by name. Rejected: own forwards per architecture (never complete),
slicing the layer list (indices and cache slots shift).
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from protocol import limits
from protocol.errors import BadInput, MfError
from runtime import transformers_names as names

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class _EndReached(Exception):
    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _Outside(nn.Module):  # type: ignore[misc]
    """A layer that isn't here: keeps the plain attributes that the model's forward may read, returns what a layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            if not name.startswith("_") and isinstance(value, str | int | float | bool | None):
                setattr(self, name, value)
        self.tuple_size = 0
        self.swap: torch.Tensor | None = None
        self.ends = False

    def forward(self, hidden: torch.Tensor, *_args: Any, **_named: Any) -> Any:
        if self.ends:
            raise _EndReached(hidden)
        out = hidden if self.swap is None else self.swap
        return (out, *[None] * (self.tuple_size - 1)) if self.tuple_size else out


class _NoEmbedding(nn.Module):  # type: ignore[misc]
    """Positions and words were embedded by the first stage; the sum that this takes part in is thrown away."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, ids: torch.Tensor, *_args: Any, **_named: Any) -> torch.Tensor:
        return torch.zeros(*ids.shape, self.width)


class Stage:
    """Layers [first, end) of `layers`, ready to run."""

    def __init__(self, model: Any, config: Any, first: int, end: int, layers: int, dtype: torch.dtype) -> None:
        self.model = model
        self.config = config
        self.first, self.end, self.layers = first, end, layers
        self.dtype = dtype
        self.hidden = int(config.hidden_size)
        self.vocabulary = int(config.vocab_size)
        self.entry: _Outside | None = None
        self.outside: list[_Outside] = []
        self._extra = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    @property
    def last(self) -> bool:
        return self.end == self.layers

    def new_cache(self) -> Any:
        """A KV cache whose slots outside of the range follow a local one of their kind, or only know the position."""
        cache = DynamicCache(config=self.model.config)
        local = {names.slot_type(slot): slot for slot in reversed(cache.layers[self.first : self.end])}
        for index, slot in enumerate(cache.layers):
            if self.first <= index < self.end:
                continue
            twin = local.get(names.slot_type(slot))
            if twin is None:
                names.make_position_only(slot, 0)
            else:
                cache.layers[index] = twin
        return cache

    def local_slots(self, cache: Any) -> list[Any]:
        return list(cache.layers[self.first : self.end])

    def tell_position(self, cache: Any, position: int) -> None:
        """For the slots that have no local twin."""
        local = {id(slot) for slot in self.local_slots(cache)}
        for slot in cache.layers:
            if id(slot) not in local:
                names.make_position_only(slot, position)

    def forward(self, cache: Any, tokens: torch.Tensor | None, hidden: torch.Tensor | None) -> torch.Tensor:
        """Token ids [count] or hidden states [count, hidden] in; logits [vocabulary] of the last position from the
        last stage, else hidden states [count, hidden]."""
        given: dict[str, Any] = {"input_ids": tokens.unsqueeze(0)} if tokens is not None else {}
        if hidden is not None:
            given = {"inputs_embeds": hidden.unsqueeze(0)}
            if self.entry is not None:
                self.entry.swap = given["inputs_embeds"]
        try:
            with torch.inference_mode():
                out = self.model(**given, past_key_values=cache, use_cache=True, return_dict=True, **self._extra)
        except _EndReached as ended:
            return ended.hidden[0]
        finally:
            if self.entry is not None:
                self.entry.swap = None
        logits: torch.Tensor = out.logits[0, -1]
        return logits


def read_config(folder: Path) -> Any:
    """The text part of a model's config with the whole; `BadInput` for what this build can't run."""
    try:
        whole = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        text = whole.get_text_config(decoder=True)
        layers, hidden, words = int(text.num_hidden_layers), int(text.hidden_size), int(text.vocab_size)
    except Exception as error:  # boundary: a hostile config may raise anything
        raise BadInput(f"config.json can't be used: {type(error).__name__}: {str(error)[:300]}") from error
    if not (1 <= layers <= limits.MAX_LAYERS and 1 <= hidden <= 1 << 20 and 1 <= words <= limits.MAX_VOCABULARY):
        raise BadInput(f"config.json: {layers} layers, hidden size {hidden}, vocabulary {words} are out of range")
    if getattr(whole, "quantization_config", None):
        raise BadInput("config.json: quantised checkpoints can't be run yet", hint="publish the model in bf16, fp16 or fp32")
    return whole


def build_stage(folder: Path, tensors: dict[str, torch.Tensor], first: int, end: int, layers: int, precision: str) -> Stage:
    """A stage that holds `tensors` (by the file's names); `BadInput` names what is missing or doesn't fit."""
    dtype = DTYPES.get(precision)
    if dtype is None:
        raise BadInput(f"precision {precision[:16]!r} isn't bf16 or fp32")
    config = read_config(folder)
    text = config.get_text_config(decoder=True)
    if layers != text.num_hidden_layers or not 0 <= first < end <= layers:
        raise BadInput(f"layers {first}..{end} of {layers} were asked, config.json says {text.num_hidden_layers}")
    model = _skeleton(config, dtype)
    stage = Stage(model, text, first, end, layers, dtype)
    _hollow(stage, model)
    _assign(model, tensors, dtype)
    _require_layers(stage, model)
    if first > 0:
        _drop_embeddings(model)
    names.fill_computed_buffers(model)
    return stage


def _skeleton(config: Any, dtype: torch.dtype) -> Any:
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # boundary: a hostile config may raise anything
        kind = str(getattr(config, "model_type", "?"))[:64]
        raise BadInput(f"architecture {kind!r} can't be built: {type(error).__name__}: {str(error)[:300]}") from error
    return model.eval().requires_grad_(False)


def _layer_list(model: nn.Module, count: int) -> nn.ModuleList:
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise BadInput(f"architecture {type(model).__name__} keeps no list of {count} layers and can't be run in stages")


def _hollow(stage: Stage, model: Any) -> None:
    """Placeholders for all layers outside of the range; those between entry and exit pass through, beyond are never reached."""
    layer_list = _layer_list(model, stage.layers)
    for index in range(stage.layers):
        if stage.first <= index < stage.end:
            continue
        outside = _Outside(layer_list[index])
        outside.ends = index == stage.end
        layer_list[index] = outside
        stage.outside.append(outside)
        if index == stage.first - 1:
            stage.entry = outside


def _assign(model: Any, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Puts each tensor where the class wants it; tied weights are one parameter in several places and all get it."""
    prefix = f"{model.base_model_prefix}."
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    by_name: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        for leaf, held in [*module._parameters.items(), *module._buffers.items()]:
            if held is not None:
                places.setdefault(id(held), []).append((module, leaf))
                by_name[f"{path}.{leaf}" if path else leaf] = held
    for name, tensor in tensors.items():
        target = next((by_name[key] for key in (name, prefix + name, name.removeprefix(prefix)) if key in by_name), None)
        if target is None:
            continue
        if tuple(target.shape) != tuple(tensor.shape):
            raise BadInput(f"tensor {name!r} has shape {list(tensor.shape)}, config.json asks for {list(target.shape)}")
        _place(places[id(target)], tensor.to(dtype) if tensor.is_floating_point() else tensor)


def _place(places: list[tuple[nn.Module, str]], tensor: torch.Tensor) -> None:
    parameter = nn.Parameter(tensor, requires_grad=False)
    for module, leaf in places:
        if leaf in module._parameters:
            module._parameters[leaf] = parameter
        else:
            module._buffers[leaf] = tensor


def _require_layers(stage: Stage, model: Any) -> None:
    for index, layer in enumerate(_layer_list(model, stage.layers)):
        missing = [name for name, parameter in layer.named_parameters() if parameter.is_meta]
        if missing:
            raise BadInput(f"layer {index} misses {len(missing)} tensors, the first is {missing[0]!r}")


def _drop_embeddings(model: Any) -> None:
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Embedding) and module.weight.is_meta:
            parent, _dot, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _NoEmbedding(module.embedding_dim))


def self_test(stage: Stage) -> str:
    """One tiny prefill and one decode: shapes and finite numbers; learns whether a layer returns a tuple. Says what was checked."""
    hooks = _watch_missing(stage.model)
    seen: list[int] = []
    own = _layer_list(stage.model, stage.layers)[stage.first]
    hooks.append(own.register_forward_hook(lambda _m, _a, out: seen.append(len(out) if isinstance(out, tuple) else 0)))
    try:
        try:
            _probe(stage)
        except MfError:
            raise
        except Exception:  # boundary: placeholders of the other return kind make a foreign forward fail anyhow
            _as_tuples(stage, seen[0] if seen and seen[0] else 1)
            _probe(stage)
        else:
            if stage.outside and seen and seen[0]:
                _as_tuples(stage, seen[0])
                _probe(stage)
    except MfError:
        raise
    except Exception as error:  # boundary: whatever a foreign forward raises means that it can't be run here
        raise BadInput(f"{type(stage.model).__name__} can't run layers {stage.first}..{stage.end}: {str(error)[:300]}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return "weights finite, prefill of 4 and decode of 1 with the right shapes and finite"


def _as_tuples(stage: Stage, size: int) -> None:
    for outside in stage.outside:
        outside.tuple_size = size


def _watch_missing(model: nn.Module) -> list[Any]:
    hooks: list[Any] = []
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                hooks.append(module.register_forward_pre_hook(_refuser(f"{path}.{leaf}")))
    return hooks


def _refuser(name: str) -> Any:
    def refuse(_module: nn.Module, _args: Any) -> None:
        raise BadInput(f"tensor {name!r} is needed here and wasn't given")

    return refuse


def _probe(stage: Stage) -> None:
    cache = stage.new_cache()
    position = 0
    for count in (4, 1):
        stage.tell_position(cache, position)
        if stage.first == 0:
            out = stage.forward(cache, torch.arange(count) % stage.vocabulary, None)
        else:
            rows = torch.arange(count * stage.hidden, dtype=torch.float32).sin().view(count, stage.hidden)
            out = stage.forward(cache, None, rows.to(stage.dtype))
        wanted = (stage.vocabulary,) if stage.last else (count, stage.hidden)
        if tuple(out.shape) != wanted:
            raise BadInput(f"self-test: layers {stage.first}..{stage.end} gave shape {list(out.shape)}, {list(wanted)} is right")
        if out.is_meta or not bool(torch.isfinite(out).all()):
            raise BadInput(f"self-test: layers {stage.first}..{stage.end} gave values that are not numbers")
        position += count
