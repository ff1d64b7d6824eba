"""A stage or encoder in this worker's memory: priced before it is built, tried before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from protocol.errors import BadInput
from runtime import interface as api
from runtime.device import CPU
from runtime.encoder import Encoder, build_encoder
from runtime.memory import DTYPE_WIDTH, activation_bytes, held_bytes
from runtime.model_config import context_of, read_config
from runtime.model_runner import ModelRunner
from runtime.runners import making_runner
from runtime.self_test import self_testing
from runtime.sliced import Sliced
from runtime.stage import Stage, build_stage
from runtime.weights import build_tensors, check_finite, check_stored, let_go, map_groups


@dataclass(frozen=True)
class Price:
    """Bytes of the memory budget."""

    weights: int
    activations: int


@dataclass(frozen=True)
class Loaded:
    """One of `runner` and `encoder`; `checked` says what the self-test saw, `context` how many positions the model takes.

    `engine` torch or llama, and `why`; `lean` what comparing the lean step said, where that runs.
    """

    model: str
    price: Price
    checked: str
    runner: ModelRunner | None = None
    encoder: Encoder | None = None
    context: int | None = None
    engine: str = "torch"
    why: str = ""
    lean: str = ""

    def close(self) -> None:
        """Gives back what Python's memory doesn't."""
        if (close := getattr(self.runner, "close", None)) is not None:
            close()

    @property
    def goes_back(self) -> bool:
        """Whether a sequence can drop positions: for guesses, and for prompts that begin alike."""
        return self.runner is not None and not self.runner.fixed_bytes and getattr(self.runner, "goes_back", True)


def price_of(folder: Path, params: api.LoadStage) -> Price:
    width = DTYPE_WIDTH.get(params.precision)
    if width is None:
        raise BadInput(f"precision {params.precision[:16]!r} isn't one of {', '.join(DTYPE_WIDTH)}")
    text = read_config(folder).get_text_config(decoder=True)
    head = text.vocab_size if params.end == params.layers else 0
    weights = held_bytes(params.tensors, params.precision, params.first == 0, params.end == params.layers)
    return Price(weights, activation_bytes(text.hidden_size, head, width))


def loading(folder: Path, params: api.LoadStage, fds: Sequence[int], price: Price, device: torch.device = CPU) -> Sliced[Loaded]:
    """Maps the groups, builds what is asked on `device` and tries it; `BadInput` says what is wrong with it.

    `fds` may be closed once the first slice is done.
    """
    groups = map_groups(fds, params.lengths)
    yield
    tensors = build_tensors(groups, params.tensors)
    check_stored(tensors)
    for name in list(tensors):
        check_finite({name: tensors[name]})
        yield
    runs: Stage | Encoder
    if params.task == "generate":
        runs = build_stage(folder, tensors, params.first, params.end, params.layers, params.precision)
        runs.move(device)
    elif (params.first, params.end) == (0, params.layers):
        runs = build_encoder(folder, tensors, params.layers, params.precision, params.task, device)
    else:
        raise BadInput(f"load_stage: a model that is to {params.task[:16]} runs whole, layers {params.first}..{params.end} were asked")
    if isinstance(runs, Encoder):
        let_go(runs.model, groups)
        return Loaded(params.model, price, "a few tokens give finite numbers of the right shape", encoder=runs)
    yield
    checked = yield from self_testing(runs)
    made = yield from making_runner(runs, tensors, params.engine, params.precision, folder, price.weights, params.checked)
    del tensors
    let_go(made.kept, groups)
    said, context = f"{checked}; {made.said}", context_of(runs.config)
    lean = made.said if made.lean else ""
    return Loaded(params.model, price, said, runner=made.runner, context=context, engine=made.engine, why=made.why, lean=lean)
