"""What fewer people use, takes longer, or asks everything: LangChain, the AI SDK, Ollama's client, schemathesis, lm-eval."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bootstrap.demo_model import demo_model
from tests.clients.conftest import Served
from tests.clients.environments import (
    LM_EVAL,
    NIGHTLY_NODE,
    NIGHTLY_PYTHON,
    SCHEMATHESIS,
    program,
    run,
    run_node,
    run_python,
)
from tests.support.mini_lm import mini_lm

pytestmark = [pytest.mark.swarm, pytest.mark.nightly]
HERE = Path(__file__).parent
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
STEP = 0.25
NEAR = 0.1
"""How far a token's logarithm may be from transformers' own, each and on average. Both compute in bf16, by other kernels, and bf16
numbers between 16 and 32, where logits lie, are 1/8 apart."""


def test_langchain(served: Served) -> None:
    said = run_python(NIGHTLY_PYTHON, HERE / "with_langchain.py", served.url, served.model)
    assert said.splitlines()[-1] == "all held"


def test_ollamas_client(served: Served) -> None:
    said = run_python(NIGHTLY_PYTHON, HERE / "with_ollama.py", served.url, served.model)
    assert said.splitlines()[-1] == "all held"


def test_the_ai_sdk(served: Served) -> None:
    said = run_node(NIGHTLY_NODE, HERE / "with_ai_sdk.mjs", served.url, served.model)
    assert said.splitlines()[-1] == "all held"


def test_every_operation_answers_as_its_document_says(served: Served, tmp_path: Path) -> None:
    """No server error, no undocumented status, no body or type of another shape, whatever schemathesis makes up."""
    (tmp_path / "schemathesis.toml").write_text(f'[parameters]\n"path.id" = ["{served.model}", "nobody/nothing@1"]\n')
    line = [str(program(SCHEMATHESIS, "schemathesis")), "run", f"{served.url}/openapi.json", "--checks", ",".join(CHECKS)]
    line += ["--phases", "examples,coverage,fuzzing", "-n", "12", "--seed", "7", "--continue-on-failure", "--warnings", "off"]
    embedder = served.node.cli("publish", str(mini_lm()), "--name", "minilm", timeout=240.0)["name"]
    assert served.node.http("POST", "/v1/embeddings", {"model": embedder, "input": "Hi"}, timeout=240.0)[0] == 200
    env = {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE), "MODEL": served.model, "EMBEDDER": embedder}
    run(line, timeout=1500.0, cwd=tmp_path, **env)


def test_lm_eval_scores_as_transformers_does(served: Served, tmp_path: Path) -> None:
    """Its loglikelihoods, asked by token ids with echo and logprobs, are those of the files that were published."""
    tasks, folder = HERE / "lm_eval", demo_model()
    where = {
        "model": served.model,
        "base_url": f"{served.url}/v1/completions",
        "tokenizer": str(folder),
        "tokenizer_backend": "huggingface",
    }
    line = [str(program(LM_EVAL, "lm_eval")), "--model", "local-completions", "--tasks", "capitals", "--include_path", str(tasks)]
    line += ["--model_args", ",".join(f"{name}={value}" for name, value in where.items()), "--output_path", str(tmp_path), "--log_samples"]
    run(line, timeout=600.0, cwd=tasks, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", OPENAI_API_KEY="none")
    [samples] = tmp_path.rglob("samples_capitals_*.jsonl")
    told = [json.loads(text) for text in samples.read_text().splitlines()]
    right, apart = 0, []
    for sample in told:
        question, choices = sample["doc"]["question"], sample["doc"]["choices"]
        wanted = [_loglikelihood(folder, question, f" {choice}") for choice in choices]
        scores = [float(one[0][0]) for one in sample["resps"]]
        for (score, count), given in zip(wanted, scores, strict=True):
            assert given == pytest.approx(score, abs=STEP * count), (question, choices)
            apart.append(abs(given - score) / count)
        right += max(wanted)[0] == wanted[sample["doc"]["answer"]][0]
    assert sum(apart) / len(apart) <= NEAR
    [results] = tmp_path.rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["capitals"]["acc,none"] == pytest.approx(right / len(told))


def _loglikelihood(folder: Path, context: str, continuation: str) -> tuple[float, int]:
    """Of the continuation's tokens by transformers alone, and how many they are."""
    import torch

    tokenizer, model = _reference(folder)
    before, whole = tokenizer(context)["input_ids"], tokenizer(context + continuation)["input_ids"]
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.tensor([whole])).logits[0].float(), -1)
    own = [float(logs[at - 1, whole[at]]) for at in range(len(before), len(whole))]
    return sum(own), len(own)


@cache
def _reference(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True).eval()
    return AutoTokenizer.from_pretrained(folder, local_files_only=True), model
