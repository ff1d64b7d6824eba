"""Everything that is loaded in this worker, and the methods the node calls on it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence as List
from pathlib import Path

import torch

from protocol.errors import BadInput, Busy, NotFound
from runtime import interface as api
from runtime.encoder import Encoder, build_encoder
from runtime.lean_stage import LeanStage
from runtime.memory import DTYPE_WIDTH, activation_bytes, held_bytes
from runtime.model_config import context_of, read_config
from runtime.runners import lean_runner
from runtime.self_test import self_test
from runtime.sequence import Sequence
from runtime.stage import Stage, build_stage
from runtime.text import ModelText, TextStream, write_files
from runtime.weights import build_tensors, check_finite, check_stored, let_go, map_groups

MAX_SEQUENCES = 256
MAX_TEXTS = 256


class _Loaded:
    """A stage or encoder with what it takes of the memory budget."""

    def __init__(self, runs: Stage | LeanStage | Encoder, weights: int, activations: int) -> None:
        self.runs = runs
        self.weights = weights
        self.activations = activations


class Engine:
    """Models' texts, stages and sequences under one memory budget. Errors: `NotFound` for unknown names, else as each says."""

    def __init__(self, config: api.WorkerConfig) -> None:
        self._scratch = Path(config.scratch)
        self._memory = config.memory
        self._folders: dict[str, Path] = {}
        self._texts: dict[str, ModelText] = {}
        self._stages: dict[str, _Loaded] = {}
        self._sequences: dict[str, tuple[str, Sequence]] = {}
        self._kv: dict[str, int] = {}
        self._streams: dict[str, TextStream] = {}

    def load_text(self, params: api.LoadText) -> api.TextLoaded:
        if params.model not in self._texts:
            folder = self._scratch / f"model-{len(self._folders)}"
            write_files(folder, params.files)
            text = ModelText(folder)
            self._folders[params.model], self._texts[params.model] = folder, text
        return self._texts[params.model].describe()

    def encode_chat(self, params: api.EncodeChat) -> api.Tokens:
        return api.Tokens(tokens=self._text(params.model).encode_chat(params.messages, params.continue_final, params.tools))

    def encode_text(self, params: api.EncodeText) -> api.Tokens:
        return api.Tokens(tokens=self._text(params.model).encode_text(params.text))

    def open_text(self, params: api.OpenText) -> None:
        self._streams[params.stream] = TextStream(self._text(params.model))
        if len(self._streams) > MAX_SEQUENCES:
            del self._streams[next(iter(self._streams))]

    def decode_text(self, params: api.DecodeText) -> api.Text:
        stream = self._streams.get(params.stream)
        if stream is None:
            raise NotFound("decode_text: this stream isn't open")
        if params.last:
            del self._streams[params.stream]
        return api.Text(text=stream.feed(params.tokens, params.last))

    def load_stage(self, params: api.LoadStage, fds: List[int]) -> api.StageLoaded:
        """Refused with `Busy` before anything is loaded when the budget has no room."""
        begun = time.perf_counter()
        if params.stage in self._stages:
            raise BadInput("load_stage: a stage of this name is loaded already")
        folder = self._folders.get(params.model)
        if folder is None:
            raise NotFound("load_stage: the model's config isn't here; load_text comes first")
        weights, activations = self._price(folder, params)
        more = max(0, activations - self._taken()[2])
        self._admit(weights + more, f"layers {params.first}..{params.end} at {params.precision}")
        runs, checked = _build(folder, params, fds)
        self._stages[params.stage] = _Loaded(runs, weights, activations)
        return api.StageLoaded(bytes=weights, seconds=time.perf_counter() - begun, self_test=checked)

    def unload(self, params: api.Unload) -> None:
        self._stages.pop(params.stage, None)
        for session in [name for name, (stage, _sequence) in self._sequences.items() if stage == params.stage]:
            self._forget(session)

    def open_sequence(self, params: api.OpenSequence) -> None:
        loaded = self._stages.get(params.stage)
        if loaded is None:
            raise NotFound("open_sequence: this stage isn't loaded")
        if not isinstance(loaded.runs, Stage | LeanStage):
            raise BadInput("open_sequence: this stage was loaded to encode texts, not to generate")
        if params.session in self._sequences:
            raise BadInput("open_sequence: this session is open already")
        if params.tokens_max <= 0:
            raise BadInput("open_sequence: tokens_max must be at least 1")
        if len(self._sequences) >= MAX_SEQUENCES:
            raise Busy(f"{MAX_SEQUENCES} sequences are open here, the most allowed")
        context = context_of(loaded.runs.config)
        if context is not None and params.tokens_max > context:
            raise BadInput(f"open_sequence: {params.tokens_max} positions were asked, this model takes {context}")
        room = loaded.runs.fixed_bytes + params.tokens_max * loaded.runs.token_bytes
        self._admit(room, f"{params.tokens_max} positions")
        self._sequences[params.session] = params.stage, Sequence(loaded.runs, params.tokens_max, params.sampling)
        self._kv[params.session] = room

    def step(self, params: api.Step) -> api.Stepped:
        found = self._sequences.get(params.session)
        if found is None:
            raise NotFound("step: this session isn't open")
        return found[1].step(params)

    def encode(self, params: api.Encode) -> api.Encoded:
        loaded = self._stages.get(params.stage)
        if loaded is None:
            raise NotFound("encode: this stage isn't loaded")
        encoder = loaded.runs
        if not isinstance(encoder, Encoder):
            raise BadInput("encode: this stage was loaded to generate")
        if not 1 <= len(params.tokens) <= MAX_TEXTS:
            raise BadInput(f"encode: {len(params.tokens)} texts, 1 to {MAX_TEXTS} are allowed")
        rows = [encoder.vector(text, params.normalise) if encoder.task == "embed" else encoder.scores(text) for text in params.tokens]
        return api.Encoded(rows=[row.numpy().tobytes() for row in rows], labels=encoder.labels)

    def close_sequence(self, params: api.CloseSequence) -> None:
        self._forget(params.session)

    def usage(self) -> api.Usage:
        weights, kv, activations = self._taken()
        base = max(0, _pss() - weights)
        return api.Usage(weights=weights, kv=kv, activations=activations, base=base, sequences=len(self._sequences))

    def _taken(self) -> tuple[int, int, int]:
        """Weights and KV add up; activations are those of one step, since steps run one after the other."""
        activations = max((loaded.activations for loaded in self._stages.values()), default=0)
        return sum(loaded.weights for loaded in self._stages.values()), sum(self._kv.values()), activations

    def _text(self, model: str) -> ModelText:
        text = self._texts.get(model)
        if text is None:
            raise NotFound("this model's text files aren't loaded")
        return text

    def _forget(self, session: str) -> None:
        self._sequences.pop(session, None)
        self._kv.pop(session, None)

    def _price(self, folder: Path, params: api.LoadStage) -> tuple[int, int]:
        width = DTYPE_WIDTH.get(params.precision)
        if width is None:
            raise BadInput(f"precision {params.precision[:16]!r} isn't one of {', '.join(DTYPE_WIDTH)}")
        text = read_config(folder).get_text_config(decoder=True)
        head = text.vocab_size if params.end == params.layers else 0
        weights = held_bytes(params.tensors, params.precision, params.end == params.layers)
        return weights, activation_bytes(text.hidden_size, head, width)

    def _admit(self, asked: int, what: str) -> None:
        free = self._memory - sum(self._taken())
        if asked > free:
            raise Busy(
                f"no room for {what}: {asked / 1e6:.1f} MB needed, {max(free, 0) / 1e6:.1f} MB of {self._memory / 1e6:.0f} MB free",
                hint="fewer layers, a shorter context, or a greater --max-memory would do",
            )


def _build(folder: Path, params: api.LoadStage, fds: List[int]) -> tuple[Stage | LeanStage | Encoder, str]:
    groups = map_groups(fds, params.lengths)
    tensors = build_tensors(groups, params.tensors)
    check_stored(tensors)
    check_finite(tensors)
    runs: Stage | Encoder
    if params.task == "generate":
        runs = build_stage(folder, tensors, params.first, params.end, params.layers, params.precision)
    elif (params.first, params.end) == (0, params.layers):
        runs = build_encoder(folder, tensors, params.layers, params.precision, params.task)
    else:
        raise BadInput(f"load_stage: a model that is to {params.task[:16]} runs whole, layers {params.first}..{params.end} were asked")
    del tensors
    if isinstance(runs, Encoder):
        let_go(runs.model, groups)
        return runs, "a few tokens give finite numbers of the right shape"
    checked = self_test(runs)
    runner, said = lean_runner(runs, params.precision)
    if runner is not None:
        let_go(runner.kept, groups)
        return LeanStage(runs, runner), f"{checked}; {said}"
    let_go(runs.model, groups)
    return runs, f"{checked}; {said}"


def _pss() -> int:
    """The process's proportional set size in bytes, 0 where the kernel doesn't tell."""
    try:
        with open(f"/proc/{os.getpid()}/smaps_rollup") as rollup:
            for line in rollup:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def set_threads(threads: int) -> None:
    torch.set_num_threads(max(1, threads))
