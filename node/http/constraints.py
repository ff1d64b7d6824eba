"""What a reply must keep to: tools that must be called and formats that were asked for, as one grammar for the sampling stage.

A forced call is written as JSON, whatever the model's own format for calls: any model can be held to JSON, and `tool_calls` reads it.
Where a model may call tools *and* is held to a schema, the grammar lets it do either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from node.http.openai_schemas import ChosenTool, Format, Function, JsonObjectFormat, JsonSchemaFormat, Tool, ToolChoice
from protocol.errors import BadInput
from protocol.messages import Grammar

MAX_SCHEMA = 256 * 1024
_DEPTH = 64


def check_choice(tools: Sequence[Tool], choice: ToolChoice | ChosenTool | None) -> None:
    """`BadInput` naming the field where tools and the choice of one don't fit."""
    names = [tool.function.name for tool in tools]
    if len(set(names)) != len(names):
        raise BadInput("tools: two functions have the same name", details={"param": "tools"})
    if choice not in (None, "none", "auto") and not names:
        raise BadInput("tool_choice: there are no tools to choose from", details={"param": "tool_choice"})
    if isinstance(choice, ChosenTool) and choice.function.name not in names:
        raise BadInput(f"tool_choice: no tool is called {choice.function.name}", details={"param": "tool_choice"})


def grammar_of(wanted: Format | None, tools: Sequence[Tool], choice: ToolChoice | ChosenTool | None) -> Grammar | None:
    """None where anything may be said."""
    if isinstance(choice, ChosenTool):
        chosen = next(tool.function for tool in tools if tool.function.name == choice.function.name)
        return _grammar(_parameters(chosen), "tools")
    calls = [_call(tool.function, f"/anyOf/{number}") for number, tool in enumerate(tools)]
    if choice == "required":
        return _grammar({"anyOf": calls}, "tools")
    if isinstance(wanted, JsonObjectFormat) and not calls:
        return Grammar(kind="json")
    if isinstance(wanted, JsonSchemaFormat | JsonObjectFormat):
        schema = {"type": "object"} if isinstance(wanted, JsonObjectFormat) else wanted.json_schema.schema
        if not calls:
            return _grammar(schema, "response_format")
        return _grammar({"anyOf": [*calls, moved(schema, f"/anyOf/{len(calls)}")]}, "response_format")
    return None


def _parameters(function: Function) -> dict[str, Any]:
    """Without a schema a function takes nothing."""
    return function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


def _call(function: Function, place: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": moved(_parameters(function), f"{place}/properties/arguments")},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def moved(schema: Any, place: str, depth: int = 0) -> Any:
    """The schema as it must be written at `place` of another: its references begin at its own root."""
    if depth > _DEPTH:
        raise BadInput(f"a schema is nested more than {_DEPTH} deep", details={"param": "tools"})
    if isinstance(schema, list):
        return [moved(one, place, depth + 1) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _reference(value, place) if key == "$ref" else moved(value, place, depth + 1) for key, value in schema.items()}


def _reference(value: Any, place: str) -> Any:
    return f"#{place}{value[1:]}" if isinstance(value, str) and value.startswith("#") else value


def _grammar(schema: dict[str, Any], param: str) -> Grammar:
    text = msgspec.json.encode(schema).decode()
    if len(text) > MAX_SCHEMA:
        raise BadInput(f"{param}: the schema has {len(text)} characters, at most {MAX_SCHEMA} are taken", details={"param": param})
    return Grammar(kind="json_schema", text=text)
