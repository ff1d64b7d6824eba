"""A whole model that turns a text into one vector (embedding) or into one score per label (classification).

The model's own transformers class runs, text by text: beside others a text would be padded, and the last bits of its
vector would depend on its neighbours. A vector is the mean of the last hidden states over all tokens, of length 1 unless
the caller wants it as it is. Scores are what the config says of its labels (`problem_type`): one of them holds (softmax of the
class's logits), each holds or not (sigmoid, also of a single label), or they are measures (the logits themselves).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from protocol.errors import BadInput, MfError
from runtime.device import CPU, device_of, place
from runtime.labels import labels_of
from runtime.model_config import context_of, read_config
from runtime.self_test import missing_named
from runtime.stage import DTYPES, load_model

TASKS = {"embed": AutoModel, "classify": AutoModelForSequenceClassification}
PROBLEMS = (None, "single_label_classification", "multi_label_classification", "regression")


class Encoder:
    """`task` embed|classify; `labels` in the order of the scores (empty for embed)."""

    def __init__(self, model: Any, config: Any, task: str, labels: list[str]) -> None:
        self.model = model
        self.config = config
        self.task = task
        self.context = context_of(config)
        self.vocabulary = int(config.get_text_config(decoder=True).vocab_size)
        self.width = int(config.get_text_config(decoder=True).hidden_size)
        self.labels = labels

    def vector(self, tokens: list[int], normalise: bool) -> torch.Tensor:
        """[width] in fp32; `BadInput` for no tokens, more than the model takes, or ids it doesn't have."""
        hidden = self._run(tokens).last_hidden_state[0].cpu().float()
        mean = _numbers(hidden.mean(dim=0))
        return torch.nn.functional.normalize(mean, dim=0) if normalise else mean

    def scores(self, tokens: list[int]) -> torch.Tensor:
        """[labels] in fp32."""
        logits = _numbers(self._run(tokens).logits[0].cpu().float())
        problem = self.config.problem_type
        if problem == "regression":
            return logits
        if problem == "multi_label_classification" or len(self.labels) == 1:
            return logits.sigmoid()
        return logits.softmax(dim=0)

    def _run(self, tokens: list[int]) -> Any:
        if not tokens or min(tokens) < 0 or max(tokens) >= self.vocabulary:
            raise BadInput(f"token ids must lie in 0..{self.vocabulary - 1}, at least one")
        if self.context is not None and len(tokens) > self.context:
            raise BadInput(f"a text has {len(tokens)} tokens, the model takes {self.context}", details={"context": self.context})
        given = torch.tensor([tokens], device=device_of(self.model))
        with torch.inference_mode():
            return self.model(input_ids=given, attention_mask=torch.ones_like(given), return_dict=True)


def _numbers(row: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(row).all()):
        raise MfError("the model gave values that aren't numbers")
    return row


def build_encoder(
    folder: Path, tensors: dict[str, torch.Tensor], layers: int, precision: str, task: str, device: torch.device = CPU
) -> Encoder:
    """An encoder that holds `tensors`, tried on a few tokens; `BadInput` names what is missing or doesn't fit."""
    auto, dtype = TASKS.get(task), DTYPES.get(precision) if precision in ("bf16", "fp32") else None
    if auto is None or dtype is None:
        raise BadInput(f"task {task[:16]!r} at precision {precision[:16]!r}: embed and classify, bf16 and fp32 are known")
    config = read_config(folder)
    if layers != config.get_text_config(decoder=True).num_hidden_layers:
        raise BadInput(f"{layers} layers were asked, config.json says {config.get_text_config(decoder=True).num_hidden_layers}")
    labels = _labels(config) if task == "classify" else []
    model = load_model(config, tensors, dtype, _drop_nothing, auto)
    place(model, device)
    if task == "embed" and any(held.is_meta for held in _pooler(model)):
        model.pooler = None  # its output isn't used, and many checkpoints come without it
    encoder = Encoder(model, config, task, labels)
    _try(encoder)
    return encoder


def _drop_nothing(_model: Any) -> None:
    """All layers are here."""


def _pooler(model: Any) -> list[torch.Tensor]:
    pooler = getattr(model, "pooler", None)
    return list(pooler.parameters()) if isinstance(pooler, torch.nn.Module) else []


def _labels(config: Any) -> list[str]:
    if config.problem_type not in PROBLEMS:
        raise BadInput(f"config.json: problem_type {str(config.problem_type)[:32]!r} isn't known")
    return labels_of(config.id2label, config.num_labels)


def _try(encoder: Encoder) -> None:
    tokens = [index * 7 % encoder.vocabulary for index in range(4)]
    try:
        with missing_named(encoder.model):
            out = encoder.vector(tokens, True) if encoder.task == "embed" else encoder.scores(tokens)
    except MfError:
        raise
    except Exception as error:  # boundary: whatever a foreign forward raises means that it can't be run here
        raise BadInput(f"{type(encoder.model).__name__} can't {encoder.task}: {str(error)[:300]}") from error
    wanted = (encoder.width,) if encoder.task == "embed" else (len(encoder.labels),)
    if tuple(out.shape) != wanted:
        raise BadInput(f"self-test: {type(encoder.model).__name__} gave shape {list(out.shape)}, {list(wanted)} is right")
