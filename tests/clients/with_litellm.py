"""LiteLLM against a node: `with_litellm.py URL MODEL`."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

litellm.telemetry = False
WHERE: Any = {"model": f"openai/{sys.argv[2]}", "api_base": f"{sys.argv[1]}/v1", "api_key": "none", "num_retries": 0}
TALK = [{"role": "user", "content": "Name the capital of France."}]
PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]

plain = litellm.completion(**WHERE, messages=TALK, max_tokens=12, temperature=0)
assert "Paris" in plain.choices[0].message.content

chunks = list(litellm.completion(**WHERE, messages=TALK, max_tokens=12, stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == plain.choices[0].message.content

called = litellm.completion(**WHERE, messages=TALK, tools=TOOLS, tool_choice="required", max_tokens=60)
assert json.loads(called.choices[0].message.tool_calls[0].function.arguments)["city"] in ("Paris", "Rome")

shape = {"type": "json_schema", "json_schema": {"name": "answer", "schema": PARAMETERS, "strict": True}}
shaped = litellm.completion(**WHERE, messages=TALK, response_format=shape, max_tokens=60)
assert json.loads(shaped.choices[0].message.content)["city"] in ("Paris", "Rome")

text = litellm.text_completion(
    **(WHERE | {"model": f"text-completion-openai/{sys.argv[2]}"}), prompt="The capital of France is", max_tokens=4
)
assert text.choices[0].text

try:
    litellm.completion(**(WHERE | {"model": "openai/nobody"}), messages=TALK)
except litellm.NotFoundError as error:
    assert "nobody" in str(error)  # noqa: PT017
else:
    raise AssertionError("an unknown model was taken")
print("all held")
