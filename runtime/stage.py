"""A range of a model's layers, run by the model's own transformers class.

Problem: hundreds of architectures, each with its own forward; a pipeline needs layers [first, end) of any of them.
Choice: build the class on the meta device (no memory), keep its forward, and replace the layers outside of the range by
placeholders that keep their index (`placeholders.py`). Weights enter through the class's own `from_pretrained`, fed with
tensors that lie on our mappings: what it takes over under the same or another name stays there, what it fuses (experts,
query-key-value) is copied once. Weights outside of the layers (embedding, norm, head) are needed or not by what the forward
really calls: a module that runs without its weight is reported by name. Whether a cut is right no rule can say for all
classes: the self-test (`self_test.py`) tries each stage before it is used, and refuses with the reason.
Rejected: own forwards per architecture (never complete), slicing the layer list (indices and cache slots shift), slots of
the cache shared between a layer that is here and one that isn't (a layer reading its neighbour's memory would go unseen).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from protocol.errors import BadInput, MfError
from runtime import transformers_names as names
from runtime.architectures import boundary_shape
from runtime.device import CPU, place
from runtime.memory import WIDTHS
from runtime.model_config import read_config
from runtime.placeholders import Absent, EndReached, Outside, has_layer_list, hollow, layer_list, stand_in

DTYPES = {precision: torch.float32 if precision == "fp32" else torch.bfloat16 for precision in WIDTHS}
"""What runs through a stage, by precision: matrices in 8 or 4 bits are made of bf16 ones (`quantised.py`, `llama/stage_file.py`)."""


class Stage:
    """Layers [first, end) of `layers`, ready to run."""

    def __init__(self, model: Any, config: Any, first: int, end: int, layers: int, dtype: torch.dtype, outside: dict[int, Outside]) -> None:
        self.model = model
        self.config = config
        self.first, self.end, self.layers = first, end, layers
        self.dtype = dtype
        self.device = CPU
        self.boundary = boundary_shape(config)
        self.hidden = prod(self.boundary)
        """Width of what travels between stages for each position."""
        self.embedded = int(model.get_input_embeddings().weight.shape[-1])
        self.vocabulary = int(config.vocab_size)
        self.outside = outside
        self.entry = outside.get(first - 1)
        self.absent: list[Absent] = []
        self.fixed_bytes = self.token_bytes = 0
        """What a session's cache takes, measured by the self-test: at once, and for each position."""
        taken = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in taken
        self._cache_argument = names.cache_argument(model)
        self.tail: torch.Tensor | None = None
        """Of the last stage: rows [count, hidden] that its last layer gave in the latest forward; None where no layer is known."""
        if self.last and (own := self.own_layers()):
            own[-1].register_forward_hook(self._keep_tail)

    def move(self, device: torch.device) -> None:
        """The weights; what goes in and comes out lies in ordinary memory."""
        place(self.model, device)
        self.device = device

    @property
    def last(self) -> bool:
        return self.end == self.layers

    def _keep_tail(self, _layer: nn.Module, _given: Any, out: Any) -> None:
        self.tail = (out[0] if isinstance(out, tuple) else out)[0].flatten(1)

    def own_layers(self) -> list[nn.Module]:
        """Layers [first, end); none where the whole model is here and keeps no list of them."""
        if not self.outside and not has_layer_list(self.model, self.layers):
            return []
        return list(layer_list(self.model, self.layers)[self.first : self.end])

    def new_cache(self) -> Any:
        """A cache whose slots outside of the range only know the position."""
        cache = names.new_cache(self.model.config)
        for index in self.outside:
            if index < len(cache.layers):
                cache.layers[index] = names.elsewhere(cache.layers[index])
        return cache

    def local_slots(self, cache: Any) -> list[Any]:
        return list(cache.layers[self.first : self.end])

    def tell_position(self, cache: Any, position: int) -> None:
        """For the slots that are elsewhere."""
        for index, outside in self.outside.items():
            outside.slot = cache.layers[index] if index < len(cache.layers) else None
            if outside.slot is not None:
                outside.slot.seen = position

    def forward(self, cache: Any, tokens: torch.Tensor | None, hidden: torch.Tensor | None) -> torch.Tensor:
        """Token ids [count] or hidden states [count, hidden] in; logits [vocabulary] of the last position from the
        last stage, else hidden states [count, hidden]. `tell_position` comes before."""
        out = self.forward_rows(cache, tokens, hidden, 1)
        return out[-1] if self.last else out

    def forward_rows(self, cache: Any, tokens: torch.Tensor | None, hidden: torch.Tensor | None, logits: int) -> torch.Tensor:
        """As `forward`, the last stage's logits [logits, vocabulary] of the last positions."""
        if tokens is not None:
            return self._run(cache, {"input_ids": tokens.unsqueeze(0).to(self.device)}, None, logits)
        assert hidden is not None
        beside = torch.zeros(len(hidden), self.embedded, dtype=self.dtype)
        return self._beside(cache, hidden, beside, 0.0, logits)

    def forward_beside(self, cache: Any, hidden: torch.Tensor, beside: torch.Tensor, fill: float) -> torch.Tensor:
        """As `forward`, with `beside` [count, embedded] where the words' embeddings would be, and `fill` from all that has no
        weights here; neither may make a difference."""
        out = self._beside(cache, hidden, beside, fill, 1)
        return out[-1] if self.last else out

    def _beside(self, cache: Any, hidden: torch.Tensor, beside: torch.Tensor, fill: float, logits: int) -> torch.Tensor:
        swap = hidden.view(1, len(hidden), *self.boundary).to(self.device)
        for absent in self.absent:
            absent.fill = fill
        return self._run(cache, {"inputs_embeds": beside.unsqueeze(0).to(self.device)}, swap, logits)

    def _run(self, cache: Any, given: dict[str, Any], swap: torch.Tensor | None, logits: int) -> torch.Tensor:
        if self.entry is not None:
            self.entry.swap, self.entry.passed = swap, False
        extra = {"logits_to_keep": logits} if self._keeps_logits else {}
        try:
            with torch.inference_mode():
                out = self.model(**given, **{self._cache_argument: cache}, use_cache=True, return_dict=True, **extra)
        except EndReached as ended:
            return ended.hidden[0].flatten(1).cpu()
        finally:
            for outside in self.outside.values():
                outside.swap = outside.slot = None
        rows: torch.Tensor = out.logits[0, -logits:].cpu()
        return rows


def build_stage(folder: Path, tensors: dict[str, torch.Tensor], first: int, end: int, layers: int, precision: str) -> Stage:
    """A stage that holds `tensors` (by the file's names); `BadInput` names what is missing or doesn't fit."""
    dtype = DTYPES.get(precision)
    if dtype is None:
        raise BadInput(f"precision {precision[:16]!r} isn't one of {', '.join(DTYPES)}")
    config = read_config(folder)
    text = config.get_text_config(decoder=True)
    if layers != text.num_hidden_layers or not 0 <= first < end <= layers:
        raise BadInput(f"layers {first}..{end} of {layers} were asked, config.json says {text.num_hidden_layers}")
    outside: dict[int, Outside] = {}
    model = load_model(config, tensors, dtype, lambda model: outside.update(hollow(model, first, end, layers)))
    stage = Stage(model, text, first, end, layers, dtype, outside)
    _require_layers(stage)
    if stage.entry is not None:
        stage.absent = stand_in(model, stage.entry, dtype)
    return stage


def load_model(
    config: Any, tensors: dict[str, torch.Tensor], dtype: torch.dtype, prepare: Callable[[Any], None], auto: Any = AutoModelForCausalLM
) -> Any:
    """A model of the class that `auto` takes for `config`, on `tensors`; what isn't given stays on the meta device."""
    kind = str(getattr(config, "model_type", "?"))[:64]
    try:
        model, info = names.load_class(*names.model_class(config, auto), tensors, dtype, prepare)
    except MfError:
        raise
    except Exception as error:  # boundary: a hostile config may raise anything
        raise BadInput(f"architecture {kind!r} can't be built: {type(error).__name__}: {str(error)[:300]}") from error
    for name, found, wanted in sorted(info["mismatched_keys"]):
        raise BadInput(f"tensor {name!r} has shape {list(found)}, config.json asks for {list(wanted)}")
    return model


def _require_layers(stage: Stage) -> None:
    for index, layer in enumerate(stage.own_layers(), stage.first):
        missing = [name for name, held in [*layer.named_parameters(), *layer.named_buffers()] if held.is_meta]
        if missing:
            raise BadInput(f"layer {index} misses {len(missing)} tensors, the first is {missing[0]!r}")
