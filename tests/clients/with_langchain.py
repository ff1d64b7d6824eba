"""LangChain's OpenAI package against a node: `with_langchain.py URL MODEL`."""

from __future__ import annotations

import sys
from typing import Any, Literal

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

WHERE: Any = {"base_url": f"{sys.argv[1]}/v1", "api_key": "none", "model": sys.argv[2], "max_retries": 0, "temperature": 0}
QUESTION = "Name the capital of France."


class Answer(BaseModel):
    """A city."""

    city: Literal["Paris", "Rome"]
    certain: bool


@tool
def weather(city: Literal["Paris", "Rome"], days: Literal[1, 2, 3]) -> str:
    """Tells the weather."""
    return f"rain in {city} for {days} days"


chat = ChatOpenAI(**WHERE, max_tokens=12)
plain = chat.invoke(QUESTION)
assert isinstance(plain, AIMessage)
assert "Paris" in plain.content, plain
assert plain.usage_metadata["output_tokens"] <= 12
assert plain.response_metadata["system_fingerprint"].endswith("-bf16")

pieces = list(chat.stream(QUESTION, stream_usage=True))
whole = pieces[0]
for piece in pieces[1:]:
    whole += piece
assert whole.content == plain.content
assert whole.usage_metadata["output_tokens"] == plain.usage_metadata["output_tokens"]

likely = chat.bind(logprobs=True, top_logprobs=2).invoke(QUESTION).response_metadata["logprobs"]["content"]
assert all(len(one["top_logprobs"]) == 2 for one in likely)

roomy = ChatOpenAI(**WHERE, max_tokens=80)
for method in ("json_schema", "function_calling"):
    shaped = roomy.with_structured_output(Answer, method=method).invoke(QUESTION)
    assert isinstance(shaped, Answer), (method, shaped)

asked = [HumanMessage("Weather in Rome?")]
called = roomy.bind_tools([weather], tool_choice="weather").invoke(asked)
[call] = called.tool_calls
assert call["name"] == "weather"
assert call["args"]["city"] in ("Paris", "Rome")
chunks = [part for message in roomy.bind_tools([weather], tool_choice="any").stream(asked) for part in message.tool_call_chunks]
assert chunks[0]["name"] == "weather"
assert "city" in "".join(part["args"] for part in chunks)
answered = roomy.bind_tools([weather], tool_choice="none").invoke([*asked, called, ToolMessage("rain", tool_call_id=call["id"])])
assert answered.content

responses = ChatOpenAI(**WHERE, max_tokens=12, use_responses_api=True)
assert "Paris" in responses.invoke(QUESTION).text
assert "Paris" in "".join(message.text for message in responses.stream(QUESTION))

assert OpenAI(**WHERE, max_tokens=6).invoke("The capital of France is").strip()
both = chat.batch([QUESTION, QUESTION])
assert [one.content for one in both] == [plain.content] * 2
print("all held")
