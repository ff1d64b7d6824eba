"""Whether a decoder class runs in stages: a tiny model of it, whole by transformers alone, against its stages, bit for bit.

`python -m tests.runtime.try_decoders [KIND…]` prints the rows of docs/ARCHITECTURES.md.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from protocol.errors import MfError
from protocol.grouping import layer_of
from runtime import transformers_names as names
from runtime.architectures import whole_only
from runtime.self_test import self_test
from runtime.stage import Stage, build_stage
from tests.runtime.support import cuts
from tests.runtime.tiny_decoders import WORDS, kinds, tiny_config, tiny_model

PROMPT = torch.arange(2, 12)
"""Longer than the tiny models' sliding windows."""
DECODED = 5
STAGES = (1, 2, 3)


class Outcome(NamedTuple):
    """`how` stages (exact at 1, 2 and 3) | some cuts | whole | refused | untried; `why` it isn't stages."""

    how: str
    why: str = ""


def attempt(kind: str) -> Outcome:
    """Builds and compares; AssertionError when a stage that passed its self-test differs in one bit."""
    try:
        config = tiny_config(kind)
        model = tiny_model(config)
        wanted = _whole(model)
    except Exception as error:  # boundary: default configs of transformers that don't even build
        return Outcome("untried", _brief(error))
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", 0)
    refused: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = _stored(model, folder)
        config.save_pretrained(folder)
        for count in STAGES:
            fault = _compare(kind, folder, tensors, layers, count, wanted)
            if fault is not None:
                refused[count] = fault
        _compare(kind, folder, tensors, layers, layers, wanted)  # refused or right: how it is listed is up to the other cuts
    if not refused:
        return Outcome("stages")
    how = "refused" if 1 in refused else "whole" if len(refused) == len(STAGES) - 1 else "some cuts"
    why = whole_only(kind) if how == "whole" else None
    return Outcome(how, why or next(iter(refused.values())))


def _compare(kind: str, folder: Path, tensors: dict[str, torch.Tensor], layers: int, count: int, wanted: list[torch.Tensor]) -> str | None:
    """Why these stages are refused, None where they are right; AssertionError where they are wrong."""
    try:
        made = _staged(folder, tensors, layers, count)
    except MfError as error:
        return _brief(error)
    for step, (mine, whole) in enumerate(zip(made, wanted, strict=True)):
        assert torch.equal(mine, whole), f"{kind} in {count} stages: step {step} differs by {float((mine - whole).abs().max()):.2g}"
    return None


def _brief(error: Exception) -> str:
    text = error.message if isinstance(error, MfError) else f"{type(error).__name__}: {error}"
    plain = " ".join(text.replace("|", "/").split())
    return plain if len(plain) <= 160 else plain[:157] + "…"


def _whole(model: Any) -> list[torch.Tensor]:
    """Logits of the last position after the prompt and after each of the tokens decoded greedily."""
    extra = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    cache = {names.cache_argument(model): names.new_cache(model.config)}
    out, tokens = [], PROMPT
    with torch.inference_mode():
        for _ in range(1 + DECODED):
            logits = model(input_ids=tokens[None], **cache, use_cache=True, return_dict=True, **extra).logits[0, -1]
            out.append(logits.clone())
            tokens = logits[:WORDS].argmax()[None]
    return out


def _staged(folder: Path, tensors: dict[str, torch.Tensor], layers: int, count: int) -> list[torch.Tensor]:
    stages = [_stage(folder, tensors, first, end, layers) for first, end in cuts(layers, count)]
    caches = [stage.new_cache() for stage in stages]
    out: list[torch.Tensor] = []
    tokens, position = PROMPT, 0
    for _ in range(1 + DECODED):
        hidden: torch.Tensor | None = None
        for stage, cache in zip(stages, caches, strict=True):
            stage.tell_position(cache, position)
            hidden = stage.forward(cache, tokens if stage.first == 0 else None, hidden)
        assert hidden is not None
        out.append(hidden.clone())
        position += len(tokens)
        tokens = hidden[:WORDS].argmax()[None]
    return out


def _stage(folder: Path, tensors: dict[str, torch.Tensor], first: int, end: int, layers: int) -> Stage:
    stage = build_stage(folder, given_to(tensors, first, end, layers), first, end, layers, "fp32")
    self_test(stage)
    return stage


def given_to(tensors: dict[str, torch.Tensor], first: int, end: int, layers: int) -> dict[str, torch.Tensor]:
    """What a stage is given by the rule of grouping: its layers, and at either end what lies outside of layers."""
    found = {name: layer_of(name) for name in tensors}
    stacks = [layer[0] for layer in found.values() if layer is not None]
    main = next((stack for stack in ("", "decoder") if stack in stacks), stacks[0] if stacks else "")
    out = {}
    for name, tensor in tensors.items():
        layer = found[name]
        inside = layer is not None and layer[0] == main and first <= layer[1] < end
        if inside or ((layer is None or layer[0] != main) and (first == 0 or end == layers)):
            out[name] = tensor
    return out


def _stored(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """By the names and in the shapes of a published checkpoint, at addresses as aligned as a group's."""
    model.save_pretrained(folder)
    return {name: tensor.clone() for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def class_name(kind: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])


def row(kind: str, outcome: Outcome) -> str:
    return f"| {kind} | {class_name(kind)} | {outcome.how} | {outcome.why} |"


def main() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for kind in sys.argv[1:] or kinds():
        try:
            print(row(kind, attempt(kind)), flush=True)
        except AssertionError as error:
            print(f"WRONG {error}", flush=True)


if __name__ == "__main__":
    main()
