"""Calls in every family's form, whole and in parts of any size; what is no call comes back to the letter."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.http.tool_calls import CallArguments, CallBegins, NamedCall, Said, Text, ToolCalls

TOOLS: dict[str, dict[str, Any]] = {
    "weather": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "add": {},
}
PARIS = ("weather", {"city": "Paris"})
FORMS: list[tuple[str, str, list[tuple[str, Any]]]] = [
    (
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>',
        "Let me see.\n",
        [PARIS, ("add", {})],
    ),
    (
        "<tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        "",
        [("weather", {"city": "12", "days": 3})],
    ),
    ("<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>", "", [PARIS]),
    (
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}, {"name":"add","arguments":{"a":1}}]',
        "",
        [PARIS, ("add", {"a": 1})],
    ),
    ('[{"name": "weather", "arguments": {"city": "Paris"}}]', "", [PARIS]),
    ('[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]add[ARGS]{"a": 1}', "", [PARIS, ("add", {"a": 1})]),
    ('weather{"city": "Paris"}add{"a":2}', "", [PARIS, ("add", {"a": 2})]),
    (
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}; {"name": "add", "parameters": {"a": "1"}}',
        "",
        [PARIS, ("add", {"a": "1"})],
    ),
    ('{"type": "function", "name": "weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    ('{"type": "function", "function": {"name": "weather", "parameters": {"city": "Paris"}}}', "", [PARIS]),
    ('<function=weather>{"city": "Paris"}</function>', "", [PARIS]),
    ('[weather(city="Par)is", days=2), add(a=1)]', "", [("weather", {"city": "Par)is", "days": 2}), ("add", {"a": 1})]),
    ('<|tool_call|>[{"name": "add", "arguments": {"a": [1, {"b": "}]"}]}}]<|/tool_call|>', "", [("add", {"a": [1, {"b": "}]"}]})]),
    (
        'Ok<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Paris"}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Ok",
        [PARIS],
    ),
    ('{"arguments": {"a": 1}, "name": "add"}', "", [("add", {"a": 1})]),
    ('{"name": "add", "arguments": "{\\"a\\": 1}"}', "", [("add", {"a": 1})]),
    ('<tool_call>{"name":"add"}</tool_call> done.', "done.", [("add", {})]),
]
NO_CALLS = [
    'plain text <b> [1] {"name": 2}',
    '{"answer": 42}',
    '{"name": "Bob", "age": 3}',
    "[1, 2, 3]",
    "weather is a tool",
    "a < b <tool_call>not json</tool_call> c",
    '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
    '<tool_call>{"nam',
    "<function=foo>{}</function> x",
    "[link](http://x)",
    "add",
    "address it",
    "  ",
    "[",
    "",
]


def read(text: str, step: int, **options: Any) -> tuple[str, list[tuple[str, str]]]:
    reader = ToolCalls(TOOLS, **options)
    said: list[Said] = []
    for at in range(0, len(text), step):
        said += reader.feed(text[at : at + step])
    return gathered([*said, *reader.finish()])


def gathered(said: list[Said]) -> tuple[str, list[tuple[str, str]]]:
    names = {one.index: one.name for one in said if isinstance(one, CallBegins)}
    assert list(names) == list(range(len(names)))
    arguments = ["".join(one.text for one in said if isinstance(one, CallArguments) and one.index == index) for index in names]
    return "".join(one.text for one in said if isinstance(one, Text)), list(zip(names.values(), arguments, strict=True))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("text", "said", "calls"), FORMS)
def test_every_form_of_a_call(text: str, said: str, calls: list[tuple[str, Any]], step: int) -> None:
    shown, found = read(text, step)
    assert (shown, [(name, json.loads(arguments)) for name, arguments in found]) == (said, calls)


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_is_text_to_the_letter(text: str, step: int) -> None:
    assert read(text, step) == (text, [])


def test_arguments_come_as_they_are_written() -> None:
    reader = ToolCalls(TOOLS)
    assert reader.feed('<tool_call>{"name": "add", "argu') == [CallBegins(0, "add")]
    assert reader.feed('ments": {"a": ') == [CallArguments(0, '{"a": ')]
    assert reader.feed("12") == [CallArguments(0, "12")]
    assert reader.feed("}}</tool_call>") == [CallArguments(0, "}")]
    assert reader.finish() == []


def test_a_call_that_broke_off_keeps_what_there_is() -> None:
    assert read('{"name": "add", "arguments": {"a": 1', 4) == ("", [("add", '{"a": 1')])


def test_one_call_where_one_is_wanted() -> None:
    assert read('[{"name": "add", "arguments": {}}, {"name": "add", "arguments": {}}]', 5, parallel=False) == ("", [("add", "{}")])


def test_a_forced_call_is_all_arguments() -> None:
    reader = NamedCall("add")
    assert gathered([*reader.feed('{"a"'), *reader.feed(": 1}"), *reader.finish()]) == ("", [("add", '{"a": 1}')])


PARTS = [
    "<tool_call>",
    "</tool_call>",
    '{"name": "add"',
    ', "arguments": {',
    "}",
    "[",
    "]",
    '"',
    "add",
    "(",
    ")",
    "<function=add>",
    "</function>",
]
ANY_PARTS = st.lists(st.sampled_from([*PARTS, "[TOOL_CALLS]", "[ARGS]", "\\", " ", "x", "```json", "<arg_key>", "a=1"]), max_size=14)


@given(ANY_PARTS, st.integers(1, 9))
def test_any_text_ends_and_how_it_is_cut_changes_nothing(parts: list[str], step: int) -> None:
    text = "".join(parts)
    assert read(text, step) == read(text, max(1, len(text)))
