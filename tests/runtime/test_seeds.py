"""A seed gives the same reply whoever else is there: 200 replies alone, and the same 200 in a crowd that comes and goes.

In fp32 every row is computed for itself and nothing may differ, and on processors where rows of bf16 are too (runtime/row_attention.py)
neither in the other precisions. Elsewhere kernels change with the size of a pass and logits differ in their
last bits; there a reply may part from what it was alone only where two tokens were next to level once seed and position had given
each its noise (runtime/sampler.py).
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch

from protocol.messages import Sampling
from runtime.engine import Engine
from runtime.model_runner import Row
from runtime.row_attention import by_rows
from runtime.sampler import Ask, _floor, sums_of
from tests.runtime.support import stored_tensors, tiny_config, tiny_model
from tests.runtime.test_engine import engine_with, load
from tests.runtime.test_generation import STAGE, Asker, prompts

COUNT, NEW = 200, 5
EQUAL = 0.95
"""Of replies of five tokens; 0.965 and more were seen on models made like these, one token in 150 parting at the worst."""
LEVEL = 0.2
"""How far apart the two sums may be where a reply differs; logits in bf16 are about 0.03 apart at 6."""
SAMPLINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_p=0.95),
    Sampling(temperature=1.3, top_k=40),
    Sampling(temperature=0.8, min_p=0.02, presence_penalty=0.3),
]


def sampling(number: int) -> Sampling:
    return msgspec.structs.replace(SAMPLINGS[number % len(SAMPLINGS)], seed=number * 7_919)


def alone_and_in_a_crowd(asker: Asker) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Prompts, the replies to each alone, those in a crowd of which one more comes with every other pass."""
    given = prompts(COUNT)
    alone = [asker.reply(prompt, sampling(number), new_max=NEW) for number, prompt in enumerate(given)]
    for number, prompt in enumerate(given):
        asker.ask(str(number), prompt, sampling(number), new_max=NEW, account=str(number % 5))
        if number % 16 == 15:
            asker.engine.step()
    asker.run()
    return given, alone, [asker.made[str(number)] for number in range(COUNT)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "int4"])
def test_200_replies_alone_and_in_a_crowd(precision: str, tmp_path: Path) -> None:
    asker = Asker(spread_out(tmp_path, precision))
    given, alone, crowd = alone_and_in_a_crowd(asker)
    differ = [number for number in range(COUNT) if alone[number] != crowd[number]]
    if precision == "fp32" or by_rows(torch.zeros(1, dtype=torch.bfloat16)):
        assert not differ
        return
    assert len(differ) <= COUNT * (1 - EQUAL), f"{len(differ)} of {COUNT} differ"
    for number in differ:
        check_level(asker, given[number], alone[number], crowd[number], sampling(number))


def spread_out(folder: Path, precision: str) -> Engine:
    """A model whose logits are as far apart as a trained one's: at random all words would be nearly as likely, and any cut a lottery."""
    config = tiny_config()
    made = engine_with(folder, config, 400_000_000)
    stronger = {"q_proj": 3.0, "k_proj": 3.0, "lm_head": 16.0}
    tensors = stored_tensors(tiny_model(config))
    scaled = {name: one * next((by for part, by in stronger.items() if part in name), 1.0) for name, one in tensors.items()}
    load(made, scaled, stage=STAGE, precision=precision)
    return made


def check_level(asker: Asker, prompt: list[int], alone: list[int], crowd: list[int], kind: Sampling) -> None:
    """Where the replies part, the two tokens' sums are next to level, or the greater one lies on the edge of what cuts leave in."""
    at = next(at for at in range(NEW) if alone[at] != crowd[at])
    runner, tokens = asker.engine._stages[STAGE].runner, [*prompt, *alone[:at]]
    assert runner is not None
    with torch.inference_mode():
        logits = runner.run([Row(0, 0, len(tokens), tokens, 1)], None)[0].float()
    runner.release(0)
    counts = {token: alone[:at].count(token) for token in alone[:at]}
    scaled, sums, _kept = sums_of(logits, Ask(kind, int(kind.seed or 0), len(tokens), counts))
    greater, less = sorted((alone[at], crowd[at]), key=lambda token: -float(sums[token]))
    if sums[greater] - sums[less] > LEVEL:
        assert kept(scaled, greater, kind, LEVEL), float(sums[greater] - sums[less])
        assert not kept(scaled, greater, kind, -LEVEL), float(sums[greater] - sums[less])


def kept(scaled: npt.NDArray[np.float32], token: int, kind: Sampling, slack: float) -> bool:
    """Whether cuts that are looser by `slack` leave the token in."""
    weights = np.exp(scaled - scaled.max())
    top_p = min(1.0, kind.top_p + slack / 10) if kind.top_p < 1 else 1.0
    floor = _floor(weights, msgspec.structs.replace(kind, top_p=top_p)) * np.exp(-slack)
    return bool(weights[token] >= floor)
