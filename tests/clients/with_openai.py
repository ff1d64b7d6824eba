"""OpenAI's client for Python against a node: `with_openai.py URL MODEL`."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

import openai
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from pydantic import BaseModel, Field

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
MODEL = sys.argv[2]
TALK: Any = [{"role": "user", "content": "Name the capital of France."}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "Tells the weather", "parameters": PARAMETERS, "strict": True}}
]


class Answer(BaseModel):
    city: Literal["Paris", "Rome"]
    certain: bool
    note: str = Field(max_length=12)


def chat(**more: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=more.pop("messages", TALK), **({"max_completion_tokens": 12} | more))


assert MODEL in [model.id for model in client.models.list()]
assert client.models.retrieve(MODEL).id == MODEL

plain = chat(seed=1, stop=["\n\n"], n=2)
text = plain.choices[0].message.content
assert "Paris" in text, text
assert plain.choices[1].message.content == text
assert plain.usage.completion_tokens <= 24
assert plain.system_fingerprint.endswith("-bf16")

chunks = list(chat(stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == chat().choices[0].message.content
assert chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens

likely = chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
assert all(one.logprob <= 0 and len(one.top_logprobs) == 3 for one in likely)
assert all(one.top_logprobs[0].token == one.token for one in likely)
assert b"".join(bytes(one.bytes or b"") for one in likely).decode().strip().startswith(text[:8].strip())

first = client.chat.completions.create(model=MODEL, messages=TALK, max_tokens=1, logprobs=True, top_logprobs=1).choices[0]
banned = client.chat.completions.create(
    model=MODEL,
    messages=TALK,
    max_tokens=1,
    frequency_penalty=1,
    presence_penalty=1,
    logit_bias={"504": -100},
    temperature=1,
    top_p=0.5,
    seed=3,
)
assert first.finish_reason == banned.choices[0].finish_reason == "length"

forced = chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}}, max_completion_tokens=80)
call = forced.choices[0].message.tool_calls[0]
assert call.function.name == "weather"
assert set(json.loads(call.function.arguments)) == {"city", "days"}
again: Any = [*TALK, forced.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "Rain"}]
assert chat(messages=again, tools=TOOLS, tool_choice="none").choices[0].message.content

with client.chat.completions.stream(model=MODEL, messages=TALK, tools=TOOLS, tool_choice="required", max_completion_tokens=80) as stream:
    kinds = {event.type for event in stream}
    made = stream.get_final_completion().choices[0]
assert "tool_calls.function.arguments.delta" in kinds, kinds
assert made.finish_reason == "tool_calls"
assert json.loads(made.message.tool_calls[0].function.arguments)["city"] in ("Paris", "Rome")

parsed = (
    client.chat.completions.parse(model=MODEL, messages=TALK, response_format=Answer, max_completion_tokens=80).choices[0].message.parsed
)
assert isinstance(parsed, Answer)

completion = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, logprobs=2, echo=True)
choice = completion.choices[0]
assert choice.text.startswith("The capital of France is"), choice.text
assert choice.logprobs.token_logprobs[0] is None
assert all(one < 0 for one in choice.logprobs.token_logprobs[1:-4])
assert "".join(choice.logprobs.tokens) == choice.text
assert "".join(
    part.choices[0].text for part in client.completions.create(model=MODEL, prompt="One, two,", max_tokens=4, stream=True) if part.choices
)

response = client.responses.create(model=MODEL, input="Name the capital of France.", max_output_tokens=12)
assert "Paris" in response.output_text
with client.responses.stream(model=MODEL, input="Name the capital of France.", max_output_tokens=12) as events:
    kinds = {event.type for event in events}
    final = events.get_final_response()
assert {"response.created", "response.output_text.delta", "response.output_text.done"} <= kinds, kinds
assert final.output_text == response.output_text
shaped = client.responses.parse(model=MODEL, input="Which city?", text_format=Answer, max_output_tokens=80)
assert isinstance(shaped.output_parsed, Answer)
flat: Any = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}]
called = client.responses.create(model=MODEL, input="Weather in Rome?", tools=flat, tool_choice="required", max_output_tokens=80)
assert json.loads(called.output[0].arguments)["days"] in range(1, 10)

for wrong, kind, param in [
    ({"model": "nobody"}, openai.NotFoundError, "model"),
    ({"reasoning_effort": "low"}, openai.BadRequestError, "reasoning_effort"),
    ({"extra_body": {"colour": "red"}}, openai.BadRequestError, "colour"),
]:
    try:
        client.chat.completions.create(**({"model": MODEL, "messages": TALK} | wrong))
    except kind as error:
        assert error.param == param, error  # noqa: PT017
    else:
        raise AssertionError(f"{wrong} was taken")

# Every field that this client knows is known here: honoured, or refused by its name.
for path, known in [
    ("/chat/completions", chat_create_params.CompletionCreateParamsBase),
    ("/completions", completion_create_params.CompletionCreateParamsBase),
    ("/embeddings", embedding_create_params.EmbeddingCreateParams),
    ("/responses", response_create_params.ResponseCreateParamsBase),
]:
    fitting: Any = {"messages": TALK} if "chat" in path else {"prompt": "x"} if path == "/completions" else {"input": "x"}
    for name in known.__annotations__:
        refused = None
        try:
            client.post(path, body={"model": MODEL} | fitting | {name: {"of": ["no", "such", "type"]}}, cast_to=object)
        except openai.BadRequestError as error:
            refused = error
        assert refused is not None, (path, name)
        assert (refused.param or "").startswith(name), (path, name, refused)
        assert "unknown option" not in str(refused), (path, name, refused)
print("all held")
