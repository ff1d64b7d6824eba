"""What people use daily: OpenAI's own clients for Python and Node, LiteLLM, and the `llm` command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.conftest import Served
from tests.clients.environments import NODE, PYTHON, program, run, run_node, run_python

pytestmark = pytest.mark.swarm
HERE = Path(__file__).parent


def test_openai_for_python(served: Served) -> None:
    said = run_python(PYTHON, HERE / "with_openai.py", served.url, served.model)
    assert said.splitlines()[-1] == "all held"


def test_openai_for_node(served: Served) -> None:
    said = run_node(NODE, HERE / "with_openai.mjs", served.url, served.model)
    assert said.splitlines()[-1] == "all held"


def test_litellm(served: Served) -> None:
    said = run_python(PYTHON, HERE / "with_litellm.py", served.url, served.model)
    assert said.splitlines()[-1] == "all held"


def test_llm_with_its_file_of_models(served: Served, tmp_path: Path) -> None:
    models = [
        f"- model_id: swarm\n  model_name: {served.model}\n  api_base: {served.url}/v1\n  supports_schema: true\n  supports_tools: true\n",
        f"- model_id: text\n  model_name: {served.model}\n  api_base: {served.url}/v1\n  completion: true\n",
    ]
    (tmp_path / "extra-openai-models.yaml").write_text("".join(models))
    line = [str(program(PYTHON, "llm")), "prompt", "--key", "none", "--no-log"]

    def asked(*more: str) -> str:
        return run([*line, *more], LLM_USER_PATH=str(tmp_path))

    streamed = asked("-m", "swarm", "-o", "max_tokens", "12", "Name the capital of France.")
    assert "Paris" in streamed
    assert asked("-m", "swarm", "--no-stream", "-o", "max_tokens", "12", "Name the capital of France.") == streamed
    assert asked("-m", "text", "-o", "max_tokens", "8", "The capital of France is").strip()
    schema = json.dumps({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False})
    assert json.loads(asked("-m", "swarm", "--schema", schema, "Which?"))["n"] in (1, 2)
