"""Tools in words, for templates that know none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bootstrap.demo_model import demo_model
from runtime.text import ModelText, write_files
from runtime.tool_prompt import in_words, knows_tools

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "The weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "Rain", "tool_call_id": "c"},
]


def test_tools_calls_and_answers_become_words() -> None:
    system, user, called, answer = in_words(TALK, [TOOL])
    assert system["content"].startswith("Be short.\n\n")
    assert json.dumps(TOOL["function"]) in system["content"]
    assert user == TALK[1]
    assert called == {"role": "assistant", "content": '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'}
    assert answer == {"role": "user", "content": "<tool_response>\nRain\n</tool_response>"}


def test_a_conversation_without_tools_stays_as_it_is() -> None:
    assert in_words(TALK[:2], None) == TALK[:2]
    assert [message["role"] for message in in_words(TALK[1:2], [TOOL])] == ["system", "user"]


def test_a_template_that_knows_tools_is_left_alone(tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in demo_model().iterdir() if path.suffix in (".json", ".jinja")}
    write_files(tmp_path / "words", files)
    text = ModelText(tmp_path / "words")
    assert "<tools>" in text.decode(text.encode_chat(TALK, False, [TOOL]))
    write_files(tmp_path / "own", files | {"chat_template.jinja": b"{% for tool in tools %}[{{ tool.function.name }}]{% endfor %}"})
    own = ModelText(tmp_path / "own")
    assert own.decode(own.encode_chat(TALK, False, [TOOL])) == "[weather]"
    assert knows_tools("{{ tools }}")
    assert not knows_tools("{{ messages }}")
