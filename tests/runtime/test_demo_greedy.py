"""The bar: greedy text through a real worker process equals transformers' own, whole and through three stages."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bootstrap.demo_model import demo_model
from node.worker import Worker
from protocol.messages import Sampling
from runtime import interface as api
from tests.runtime.support import cuts, for_stage, lay_out, load_message, model_files, read_tensors

PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Explain to a child why the sky is blue.",
)
NEW = 64
LAYERS = 30


@pytest.fixture(scope="module")
def folder() -> Path:
    return demo_model()


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def reference(folder: Path, dtype: torch.dtype) -> list[tuple[list[int], list[int]]]:
    """(prompt, reply) token ids by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    out = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        given = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**given, max_new_tokens=NEW, min_new_tokens=0, do_sample=False)
        size = given["input_ids"].shape[1]
        out.append((given["input_ids"][0].tolist(), made[0, size:].tolist()))
    return out


async def load(worker: Worker, folder: Path, stages: int, precision: str) -> list[str]:
    await worker.load_text(api.LoadText(model="m", files=model_files(folder)))
    tensors = read_tensors(folder / "model.safetensors")
    names = []
    for first, end in cuts(LAYERS, stages):
        fd, places, length = lay_out(for_stage(tensors, "model.layers.", first, end, LAYERS))
        message = load_message(places, length, first, end, LAYERS, precision)
        await worker.load_stage(message, [fd])
        os.close(fd)
        names.append(message.stage)
    return names


async def generate(worker: Worker, stages: list[str], prompt: list[int]) -> list[int]:
    sessions = [f"session {stage}" for stage in stages]
    for stage, session in zip(stages, sessions, strict=True):
        await worker.open_sequence(stage, session, 256, Sampling())
    position, tokens, made = 0, prompt, []
    while len(made) < NEW and made[-1:] != [2]:
        answer = api.Stepped()
        for index, session in enumerate(sessions):
            given = tokens if index == 0 else None
            answer = await worker.step(
                api.Step(session=session, epoch=0, position=position, tokens=given, hidden=answer.hidden, count=len(tokens))
            )
        assert answer.token is not None
        position += len(tokens)
        tokens = [answer.token]
        made += tokens
    for session in sessions:
        await worker.close_sequence(session)
    return made


async def compare(folder: Path, scratch: Path, precision: str, dtype: torch.dtype) -> None:
    wanted = await asyncio.to_thread(reference, folder, dtype)
    worker = Worker(scratch, threads=2, memory=3_000_000_000)
    try:
        for count in (1, 3):
            stages = await load(worker, folder, count, precision)
            for prompt, (given, reply) in zip(PROMPTS, wanted, strict=True):
                assert await worker.encode_chat("m", [{"role": "user", "content": prompt}]) == given
                assert await generate(worker, stages, given) == reply, f"{count} stages: {prompt}"
            for stage in stages:
                await worker.unload(stage)
    finally:
        await worker.stop()


@pytest.mark.nightly
async def test_greedy_equals_transformers(folder: Path, tmp_path: Path, two_threads: None) -> None:
    await compare(folder, tmp_path, "bf16", torch.bfloat16)


@pytest.mark.nightly
async def test_greedy_equals_transformers_in_reference_precision(folder: Path, tmp_path: Path, two_threads: None) -> None:
    await compare(folder, tmp_path, "fp32", torch.float32)
