"""Ollama's client for Python against a node that answers Ollama's paths: `with_ollama.py URL MODEL`."""

from __future__ import annotations

import json
import sys
from typing import Literal

import ollama
from pydantic import BaseModel

client = ollama.Client(host=sys.argv[1])
MODEL = sys.argv[2]
TALK = [{"role": "user", "content": "Name the capital of France."}]
FEW = {"num_predict": 12, "temperature": 0}


class Answer(BaseModel):
    city: Literal["Paris", "Rome"]


def weather(city: str, days: int) -> str:
    """Tells the weather.

    Args:
        city: Where.
        days: For how many days.
    """
    return f"rain in {city} for {days} days"


assert MODEL in [model.model for model in client.list().models]
shown = client.show(MODEL)
assert shown.modelinfo["general.architecture"], shown

plain = client.chat(model=MODEL, messages=TALK, options=FEW)
assert "Paris" in plain.message.content
assert (plain.done, plain.eval_count <= 12, plain.prompt_eval_count > 0) == (True, True, True)
streamed = list(client.chat(model=MODEL, messages=TALK, options=FEW, stream=True))
assert "".join(part.message.content for part in streamed) == plain.message.content
assert [part.done for part in streamed] == [False] * (len(streamed) - 1) + [True]
assert [model.model for model in client.ps().models] in ([MODEL], []), client.ps()

shaped = client.chat(model=MODEL, messages=TALK, format=Answer.model_json_schema(), options={"num_predict": 60})
assert Answer.model_validate_json(shaped.message.content).city in ("Paris", "Rome")
assert json.loads(client.generate(model=MODEL, prompt="A city as JSON", format=Answer.model_json_schema()).response)
told = client.chat(model=MODEL, messages=TALK, tools=[weather], options={"num_predict": 60})
assert told.message.content or told.message.tool_calls
history = [*TALK, plain.message, {"role": "user", "content": "And of Italy?"}]
assert client.chat(model=MODEL, messages=history, options=FEW).message.content

generated = client.generate(model=MODEL, prompt="Name the capital of France.", options=FEW)
assert generated.response == plain.message.content
raw = client.generate(model=MODEL, prompt="The capital of France is", raw=True, options=FEW, stream=True)
assert "".join(part.response for part in raw)

for ask, status in [(lambda: client.chat(model="nobody", messages=TALK), 404), (lambda: client.pull("anything"), 404)]:
    try:
        ask()
    except ollama.ResponseError as error:
        assert error.status_code == status, error  # noqa: PT017
    else:
        raise AssertionError("it was taken")
print("all held")
