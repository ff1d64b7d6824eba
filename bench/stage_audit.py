"""What audits of stages can tell: `python -m bench.stage_audit [quick] [PART…]`, a PART being a name in `run` below.

SmolLM2-135M in three stages as workers run them, twice over the same texts: once as it may run for a reply (in small cuts, one by one,
one thread), once as an audit does (prefill in cuts of 256, two threads). Prints a table, one of bars at the end. Honest pairs first,
those that run by transformers' own forward and those of llama.cpp beside torch, either way round, among them, then cheats in the middle
stage, in the last one, and in sampling. "detected" are verdicts on 200 rows taken at random, "accused" those on honest rows, a verdict for
each 200.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.bars import Bar, table
from bootstrap.demo_model import demo_model
from protocol.messages import Sampling
from runtime import fingerprint
from runtime.engine_choice import torch_precision
from runtime.fingerprint import KEY, Printer, compare, compare_tokens, distances
from runtime.memory import TRAVELS
from runtime.model_runner import ModelRunner, Row
from runtime.quantised import quantise
from runtime.runners import lean_runner, make_runner
from runtime.sampler import Ask, choose
from runtime.self_test import self_test
from runtime.stage import build_stage
from runtime.stage_runner import StageRunner
from runtime.token_gap import token_gap
from tests.runtime.support import for_stage, read_tensors

LAYERS = 30
MIDDLE = (10, 20)
CUTS = (10, 20, 30)
TEXT = 512
AUDITED = 200
TRIES = 1_000
WARM = Sampling(temperature=0.8, top_p=0.95, seed=11)
GREEDY = Sampling()
Change = Callable[[dict[int, nn.Module]], None]
"""Does something to a stage's layers, by their number."""


@dataclass(frozen=True)
class Finding:
    """A line of the table: of audits of 200 of its `rows`, the part that finds a difference, and how many of the rows as they come do."""

    what: str
    rows: int
    detected: float
    accused: int
    honest: bool


FOUND: list[Finding] = []
"""All lines of this run."""


@dataclass
class Ran:
    """Prints by cut, one row after the other, and the logits of each text."""

    prints: dict[int, bytes] = field(default_factory=dict)
    logits: list[torch.Tensor] = field(default_factory=list)


class Machine:
    """One way to run the model: a precision, a number of threads, what was done to the layers; `lean` False: by transformers' forward.

    `llama`: a folder, where llama.cpp runs it. At llama.cpp's own precisions torch runs what it has in their place.
    """

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        precision: str,
        threads: int,
        change: Change | None = None,
        lean: bool = True,
        llama: Path | None = None,
    ) -> None:
        self.threads, self._word = threads, TRAVELS[precision]
        torch.set_num_threads(threads)
        if llama is not None or torch_precision(precision) != precision:
            self._runners = [_as_loaded(tensors, first, end, precision, llama) for first, end in pairwise((0, *CUTS))]
        else:
            self._runners = [_runner(tensors, first, end, precision, change, lean) for first, end in pairwise((0, *CUTS))]
        self._printer = Printer(bytes(range(KEY)), self._runners[0].hidden)

    def run(self, texts: Sequence[torch.Tensor], step: int, logits: bool = False) -> Ran:
        torch.set_num_threads(self.threads)
        ran = Ran({cut: b"" for cut in CUTS})
        for text in texts:
            parts = [self._step(ran, begin, text[begin : begin + step].tolist(), logits) for begin in range(0, len(text), step)]
            if logits:
                ran.logits.append(torch.cat(parts))
            for runner in self._runners:
                runner.release(0)
        return ran

    def _step(self, ran: Ran, begin: int, words: list[int], logits: bool) -> torch.Tensor:
        out: torch.Tensor | None = None
        for cut, runner in zip(CUTS, self._runners, strict=True):
            last = cut == LAYERS
            runner.keep_tails = last
            row = Row(0, begin, len(words), words if runner.first == 0 else None, len(words) if logits and last else int(last))
            out = runner.run([row], out)
            if last and not runner.tails:
                continue  # llama.cpp's last stage shows none
            rows = runner.tails[0] if last else out
            ran.prints[cut] += self._printer.of(rows.contiguous().view(torch.uint8).numpy().tobytes(), self._word)
        assert out is not None
        return out.to(torch.bfloat16, copy=True)


def _runner(tensors: dict[str, torch.Tensor], first: int, end: int, precision: str, change: Change | None, lean: bool) -> ModelRunner:
    stage = build_stage(demo_model(), for_stage(tensors, "model.layers.", first, end, LAYERS), first, end, LAYERS, precision)
    if change is not None:
        change(dict(enumerate(stage.own_layers(), first)))
    self_test(stage)
    made = lean_runner(stage, precision)[0] if lean else None
    if made is None and precision not in ("bf16", "fp32") and not lean:
        quantise(stage, precision)
        self_test(stage)
    return StageRunner(stage) if made is None else made


def _as_loaded(tensors: dict[str, torch.Tensor], first: int, end: int, precision: str, llama: Path | None) -> ModelRunner:
    """By llama.cpp, or by torch in its place, as a worker loads a stage."""
    own = for_stage(tensors, "model.layers.", first, end, LAYERS)
    stage = build_stage(demo_model(), dict(own), first, end, LAYERS, torch_precision(precision) if llama is None else "bf16")
    self_test(stage)
    made = make_runner(stage, own, "torch" if llama is None else "llama", precision, llama or Path(), 0)
    if made.engine != ("torch" if llama is None else "llama"):
        raise RuntimeError(made.why)
    return made.runner


def skip(index: int) -> Change:
    """What the layer would add is nought."""

    def change(layers: dict[int, nn.Module]) -> None:
        for name, held in layers[index].named_parameters() if index in layers else ():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                held.data = torch.zeros_like(held)

    return change


def swap(index: int) -> Change:
    """Two neighbours' weights exchanged; each keeps its slot of the cache."""

    def change(layers: dict[int, nn.Module]) -> None:
        if index not in layers or index + 1 not in layers:
            return
        one, two = dict(layers[index].named_parameters()), dict(layers[index + 1].named_parameters())
        for name in one:
            one[name].data, two[name].data = two[name].data, one[name].data

    return change


def rounded(first: int, end: int, bits: int, group: int) -> Change:
    """Weights as `bits` integers with a scale for each `group` of a row (0: for the row)."""

    def change(layers: dict[int, nn.Module]) -> None:
        for index in range(first, end):
            for part in layers[index].modules() if index in layers else ():
                if isinstance(part, nn.Linear):
                    part.weight.data = _round(part.weight.data, bits, group)

    return change


def _round(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    grouped = weight.float().view(weight.shape[0], -1, group or weight.shape[1])
    scale = grouped.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((grouped / scale).round() * scale).view(weight.shape).to(weight.dtype)


def sibling(texts: Sequence[torch.Tensor], tensors: dict[str, torch.Tensor], steps: int, rate: float) -> Change:
    """The middle stage of a child of this model: all of it trained a little further on other texts."""
    torch.set_num_threads(2)
    model = build_stage(demo_model(), {name: held.clone() for name, held in tensors.items()}, 0, LAYERS, LAYERS, "fp32").model
    tuned = [parameter.requires_grad_() for parameter in model.model.layers.parameters()]
    optimiser = torch.optim.AdamW(tuned, lr=rate)
    for step in range(steps):
        text = texts[step % len(texts)][:128].unsqueeze(0)
        loss = model(input_ids=text, labels=text, use_cache=False).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    learned = [{name: held.detach().clone() for name, held in layer.named_parameters()} for layer in model.model.layers]

    def change(layers: dict[int, nn.Module]) -> None:
        for index in range(*MIDDLE):
            for name, held in layers[index].named_parameters() if index in layers else ():
                held.data = learned[index][name].to(held.dtype)

    return change


def texts_of(count: int, first: int = 0) -> list[torch.Tensor]:
    from transformers import AutoTokenizer

    top = Path(__file__).parent.parent
    words = "".join(path.read_text() for path in sorted([*top.glob("docs/*.md"), *top.glob("node/*.py"), *top.glob("runtime/*.py")]))
    ids = AutoTokenizer.from_pretrained(demo_model())(words)["input_ids"]
    return [torch.tensor(ids[index * TEXT : (index + 1) * TEXT]) for index in range(first, first + count)]


def rows_of(prints: bytes, chosen: Sequence[int]) -> bytes:
    size = fingerprint.ROW_BYTES
    return b"".join(prints[row * size : (row + 1) * size] for row in chosen)


def verdicts(one: bytes, two: bytes, precision: str, rng: random.Random) -> float:
    """The part of audits of 200 rows that find a difference."""
    total = len(one) // fingerprint.ROW_BYTES
    picks = [rng.sample(range(total), min(AUDITED, total)) for _ in range(TRIES)]
    return sum(compare(rows_of(one, pick), rows_of(two, pick), precision).differs is True for pick in picks) / TRIES


def in_order(one: bytes, two: bytes, precision: str) -> int:
    """Audits of the rows as they come, 200 at a time, that find a difference."""
    size = AUDITED * fingerprint.ROW_BYTES
    return sum(compare(one[at : at + size], two[at : at + size], precision).differs is True for at in range(0, len(one), size))


def line(name: str, cut: int, one: bytes, two: bytes, rng: random.Random, precision: str = "bf16", honest: bool = False) -> None:
    apart = distances(one, two)
    spread = " ".join(f"{np.quantile(apart, part):7.4f}" for part in (0.01, 0.5, 0.99, 1.0))
    above = int((apart > fingerprint.ROW["fp32" if precision == "fp32" else "bf16"]).sum())
    hit, accused = verdicts(one, two, precision, rng), in_order(one, two, precision)
    print(f"{name:34} {cut:3} {len(apart):6} {spread} {above:6} {hit:8.3f} {accused:4}", flush=True)
    FOUND.append(Finding(f"{name}, cut {cut}", len(apart), hit, accused, honest))


def token_line(name: str, gaps: list[float], rng: random.Random) -> None:
    found = np.array(gaps)
    spread = " ".join(f"{np.quantile(found, part):7.4f}" for part in (0.5, 0.9, 0.99, 1.0))
    picks = [[gaps[row] for row in rng.sample(range(len(gaps)), min(AUDITED, len(gaps)))] for _ in range(TRIES)]
    hit = sum(compare_tokens(pick).differs is True for pick in picks) / TRIES
    print(f"{name:34}     {len(gaps):6} {spread} {int((found > fingerprint.TOKEN_GAP).sum()):6} {hit:8.3f}", flush=True)
    accused = sum(compare_tokens(gaps[at : at + AUDITED]).differs is True for at in range(0, len(gaps), AUDITED))
    FOUND.append(Finding(f"tokens, {name}", len(gaps), hit, accused, name.startswith("honest")))


def sampled(logits: torch.Tensor, sampling: Sampling, seed: int, position: int) -> int:
    return choose(logits[None], [Ask(sampling, seed, position)])[0].token


def gaps_between(given: Ran, audit: Ran, sampling: Sampling, pick: Callable[[torch.Tensor, int], int] | None = None) -> list[float]:
    """Each row's token as `given` samples it (or as `pick` does), and how far it lies behind by `audit`."""
    gaps, seed = [], sampling.seed or 0
    for mine, other in zip(given.logits, audit.logits, strict=True):
        for row in range(len(mine)):
            logits = mine[row].float()
            token = pick(logits, row) if pick is not None else sampled(logits, sampling, seed, row + 1)
            gaps.append(token_gap(other[row].float(), sampling, seed, row + 1, token))
    return gaps


def second(logits: torch.Tensor, _row: int) -> int:
    return int(logits.topk(2).indices[1])


def sometimes_second(logits: torch.Tensor, row: int) -> int:
    return int(logits.topk(2).indices[1 if row % 10 == 0 else 0])


def own_dice(logits: torch.Tensor, row: int) -> int:
    return sampled(logits, WARM, 4_711, row + 1)


def honest(precision: str) -> Callable[..., None]:
    """Machines that do what they should: one thread and two, small cuts and large, row by row, lean and by transformers' forward."""

    def run(tensors: dict[str, torch.Tensor], scale: int, rng: random.Random) -> None:
        many, few = texts_of(20 // scale), texts_of(1)
        rows = sum(map(len, few)) * fingerprint.ROW_BYTES
        audit = Machine(tensors, precision, 2).run(many, 256)
        one = Machine(tensors, precision, 1)
        pairs = {"cuts of 64, 1 thread": one.run(many, 64), "one by one, 1 thread": one.run(few, 1)}
        if precision != "fp32":
            pairs["transformers, 1 thread"] = Machine(tensors, precision, 1, lean=False).run(many[: max(1, len(many) // 4)], 64)
        for name, ran in pairs.items():
            for cut in CUTS:
                line(f"{precision} {name}", cut, ran.prints[cut], audit.prints[cut][: len(ran.prints[cut])], rng, precision, honest=True)
        assert len(pairs["one by one, 1 thread"].prints[LAYERS]) == rows

    return run


def by_llama(precision: str) -> Callable[..., None]:
    """llama.cpp beside what torch runs in its place: the usual honest pair where each node chooses its engine."""

    def run(tensors: dict[str, torch.Tensor], scale: int, rng: random.Random) -> None:
        texts = texts_of(20 // scale)
        with tempfile.TemporaryDirectory(prefix="mf-audit-") as place:
            for name, one, two in (("by llama, audited by torch", Path(place), None), ("by torch, audited by llama", None, Path(place))):
                ran = Machine(tensors, precision, 1, llama=one).run(texts, 64)
                audit = Machine(tensors, precision, 2, llama=two).run(texts, 256)
                for cut in CUTS[:-1]:
                    line(f"{precision} {name}", cut, ran.prints[cut], audit.prints[cut], rng, precision, honest=True)

    return run


def cheats(tensors: dict[str, torch.Tensor], scale: int, rng: random.Random) -> Iterator[tuple[str, Change]]:
    step = 3 * scale
    yield from ((f"layer {index} skipped", skip(index)) for index in range(MIDDLE[0], MIDDLE[1], step))
    yield from ((f"layers {index}, {index + 1} swapped", swap(index)) for index in range(MIDDLE[0], MIDDLE[1] - 1, step))
    yield "int4 for bf16, groups of 32", rounded(*MIDDLE, 4, 32)
    yield "int4 for bf16, one scale a row", rounded(*MIDDLE, 4, 0)
    yield "int8 for bf16, one scale a row", rounded(*MIDDLE, 8, 0)
    yield "int8 for bf16, groups of 32", rounded(*MIDDLE, 8, 32)
    for steps, rate in ((20, 2e-5), (60, 1e-4), (60, 5e-4)):
        yield f"sibling: {steps} steps at {rate:g}", sibling(texts_of(20, 100), tensors, max(2, steps // scale), rate)


def in_layers(tensors: dict[str, torch.Tensor], scale: int, rng: random.Random) -> None:
    """Cheats in the layers of a middle stage."""
    texts = texts_of(2 // min(scale, 2))
    audit = Machine(tensors, "bf16", 2).run(texts, 256)
    for name, change in cheats(tensors, scale, rng):
        ran = Machine(tensors, "bf16", 2, change).run(texts, 64)
        line(name, MIDDLE[1], ran.prints[MIDDLE[1]], audit.prints[MIDDLE[1]], rng)


def honest_tokens(tensors: dict[str, torch.Tensor], scale: int, rng: random.Random) -> None:
    """As many honest tokens as rows: of one text after another, since their logits take room."""
    plain, audit = Machine(tensors, "bf16", 1), Machine(tensors, "bf16", 2)
    gaps: dict[str, list[float]] = {"greedy": [], "t 0.8": []}
    for text in texts_of(20 // scale):
        given, checked = plain.run([text], 64, logits=True), audit.run([text], 256, logits=True)
        for word, sampling in (("greedy", GREEDY), ("t 0.8", WARM)):
            gaps[word] += gaps_between(given, checked, sampling)
    for word, found in gaps.items():
        token_line(f"honest, many, {word}", found, rng)


def in_tokens(tensors: dict[str, torch.Tensor], scale: int, rng: random.Random) -> None:
    """Tokens of honest last stages, of ones with other layers, and of ones that choose as they like."""
    texts = texts_of(2 // min(scale, 2))
    print(f"\n{'tokens':34}       rows    0.5     0.9    0.99     max  above detected of 200", flush=True)
    audit = Machine(tensors, "bf16", 2).run(texts, 256, logits=True)
    plain = Machine(tensors, "bf16", 1).run(texts, 64, logits=True)
    for sampling, word in ((GREEDY, "greedy"), (WARM, "t 0.8")):
        token_line(f"honest, {word}", gaps_between(plain, audit, sampling), rng)
        token_line(f"second best, {word}", gaps_between(plain, audit, sampling, second), rng)
        token_line(f"second best each tenth, {word}", gaps_between(plain, audit, sampling, sometimes_second), rng)
    token_line("own dice, t 0.8", gaps_between(plain, audit, WARM, own_dice), rng)
    del plain
    for name, change in (("layer 25 skipped", skip(25)), ("layers 25, 26 swapped", swap(25)), ("int4 in 20..30", rounded(20, 30, 4, 32))):
        ran = Machine(tensors, "bf16", 2, change).run(texts, 64, logits=True)
        token_line(f"{name}, greedy", gaps_between(ran, audit, GREEDY), rng)
        token_line(f"{name}, t 0.8", gaps_between(ran, audit, WARM), rng)
        line(f"{name}, rows before the head", LAYERS, ran.prints[LAYERS], audit.prints[LAYERS], rng)


def run(words: Sequence[str] = ()) -> dict[str, Any]:
    scale = 5 if "quick" in words else 1
    parts: dict[str, Callable[..., object]] = {
        "bf16": honest("bf16"),
        "int8": honest("int8"),
        "int4": honest("int4"),
        "fp32": honest("fp32"),
        "llama": by_llama("bf16"),
        "q8_0": by_llama("q8_0"),
        "layers": in_layers,
        "tokens": in_tokens,
        "draws": honest_tokens,
    }
    FOUND.clear()
    rng, began = random.Random(5), time.monotonic()
    tensors = read_tensors(demo_model() / "model.safetensors")
    print(f"{'rows':34} cut   rows    0.01    0.5    0.99     max  above detected of 200 / accused in order", flush=True)
    for name, part in parts.items():
        if name in words or not parts.keys() & set(words):
            part(tensors, scale, rng)
    return {"bench": "stage_audit", "seconds": round(time.monotonic() - began), "lines": [asdict(one) for one in FOUND]}


def bars(found: dict[str, Any]) -> list[Bar]:
    """Honest pairs by the share of audits that accuse them, cheats by that of audits that find them; what no audit finds is never a ban."""
    lines = []
    for one in found["lines"]:
        asked = "≤ 0.0001" if one["honest"] else "≥ 0.99, or said to be undetectable"
        lines.append(Bar(f"{one['what']}, {one['rows']} rows", asked, f"{one['detected']:.3f}, {one['accused']} in order"))
    return lines


if __name__ == "__main__":
    print(table(bars(run(sys.argv[1:]))))
