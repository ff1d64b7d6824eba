"""Tool calls out of a reply's text, as it comes.

Every family of models writes calls in its own way, and nothing in a model's files says which: the template that shows it is a program.
But the ways differ in their markers alone, and no two disagree about what a marker means, so one reader takes them all:

    <tool_call>{"name": …, "arguments": {…}}</tool_call>                       Hermes, Qwen, SmolLM
    <tool_call><function=NAME><parameter=P>V</parameter></function></tool_call> Qwen Coder
    <tool_call>NAME<arg_key>P</arg_key><arg_value>V</arg_value></tool_call>     GLM
    [TOOL_CALLS][{"name": …, "arguments": {…}}]   [TOOL_CALLS]NAME[ARGS]{…}      Mistral
    <|python_tag|>{"name": …, "parameters": {…}}; …   <function=NAME>{…}</function>   [NAME(p=v)]   Llama
    <|tool_call|>[{…}]<|/tool_call|>                                            Granite, Phi
    function<｜tool▁sep｜>NAME ```json {…}```                                     DeepSeek

Markers that are special tokens are gone from the text; so a reply that *begins* with such a body is read as one too. Only names
of the request's own tools make a call: anything else was text, and is given back as text, to the letter. Rejected: a parser for each
family chosen by the model's name (a fine-tuning's name says nothing), and one that waits for the end (clients stream arguments).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from node.http.call_scanner import CallScanner


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class CallBegins:
    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next characters of call `index`'s arguments, JSON when all are there."""

    index: int
    text: str


Said = Text | CallBegins | CallArguments

_OPENERS = (
    "<tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "<|tool_call|>",
    "<function=",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
)
_BETWEEN = (
    *(opener for opener in _OPENERS if opener != "<function="),
    *("</tool_call>", "<|/tool_call|>", "function<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "```json", "```", *"[],;"),
)
"""What may stand before, between and after the calls of one reply."""
_NAMED = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)(?:\[CALL_ID\][A-Za-z0-9]*)?(?:\[ARGS\])?\s*(?:```json\s*)?(?=\{)")
_NAME_BEGINS = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)(?:\[[A-Z_]*\]?[A-Za-z0-9]*)*\s*`{0,3}(?:j|js|jso|json)?\s*\Z")
_FUNCTION = re.compile(r"<function=([^>\s]{1,64})>(.*?)</function>", re.DOTALL)
_PAIRED = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)\s*(<arg_key>.*?)</tool_call>", re.DOTALL)
_PYTHONIC = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)\(")
_MOST_PYTHON = 16_384
"""Characters of a call in Python's form: each closing bracket in it may be its end."""
_PARAMETERS = re.compile(r"<parameter=([^>]+)>\n?(.*?)\n?</parameter>|<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


class ToolCalls:
    """`tools`: the declared names with their parameters' schemas. `feed` and `finish` give what can be said for sure."""

    def __init__(self, tools: Mapping[str, Mapping[str, Any]], *, parallel: bool = True) -> None:
        self._tools = tools
        self._parallel = parallel
        self._held = ""
        self._raw = ""
        """What was taken for the body of calls and hasn't proved to be one."""
        self._state = self._start
        self._scanner: CallScanner | None = None
        self._pending = ""
        self._begun = False
        self.count = 0

    def feed(self, text: str) -> list[Said]:
        self._held += text
        return list(self._said(last=False))

    def finish(self) -> list[Said]:
        """What was held back, at the reply's end."""
        said = list(self._said(last=True))
        if self._raw or self._held:
            said.append(Text(self._raw + self._held))
            self._raw = self._held = ""
        return said

    def _said(self, last: bool) -> Iterator[Said]:
        while True:
            before = (self._held, self._state)
            yield from self._state(last)
            if not self._held or before == (self._held, self._state):
                return

    def _start(self, last: bool) -> Iterator[Said]:
        """A reply may begin with a call whose marker was a special token."""
        begin = self._held.lstrip()
        if not begin:
            return
        named = any(begin.startswith(name) or name.startswith(begin) for name in self._tools)
        self._state = self._body if begin[0] in "{[" or named else self._text
        yield from ()

    def _text(self, last: bool) -> Iterator[Said]:
        found = [(at, opener) for opener in _OPENERS if (at := self._held.find(opener)) >= 0]
        if found:
            at, _ = min(found)
            if self._held[:at].strip():
                yield Text(self._held[:at])
                self._held = self._held[at:]
            self._state = self._body
            return
        keep = 0 if last else max(_overlap(self._held, opener) for opener in _OPENERS)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if shown:
            yield Text(shown)

    def _body(self, last: bool) -> Iterator[Said]:
        """Between calls: what the next one looks like."""
        if self._skip(last):
            return
        named = _NAMED.match(self._held)
        if self._held.startswith("{"):
            self._scanner, self._begun, self._pending = CallScanner(), False, ""
            self._state = self._scan
        elif named and named[1] in self._tools:
            self._consume(named.end())
            self._scanner = CallScanner.of(named[1])
            self._state, self._begun, self._pending = self._scan, False, ""
        elif (whole := self._whole(last)) is not None:
            yield from whole
        elif last or not self._may_become_call():
            yield from self._give_back()

    def _skip(self, last: bool) -> bool:
        """Takes what stands between calls. Whether nothing is left, or what is left must grow before it is known."""
        while self._held:
            if not last and any(part != self._held and part.startswith(self._held) for part in (*_BETWEEN, "<function=")):
                return True
            between = next((part for part in _BETWEEN if self._held.startswith(part)), None)
            if between is None and not self._held[0].isspace():
                return False
            self._consume(len(between) if between else 1)
            if self.count and between not in _OPENERS and len(self._raw) == len(between or " "):
                self._raw = ""  # the end of the call before
        return True

    def _consume(self, count: int) -> None:
        self._raw += self._held[:count]
        self._held = self._held[count:]

    def _may_become_call(self) -> bool:
        if self._held.startswith("<function="):
            return _FUNCTION.match(self._held) is None
        name = re.match(r"[A-Za-z_][A-Za-z0-9_.-]*", self._held)
        if name is None:
            return False
        rest = self._held[name.end() :]
        if not rest:
            return any(tool.startswith(name[0]) for tool in self._tools) or "function<｜tool▁sep｜>".startswith(name[0])
        more = (
            _NAME_BEGINS.match(self._held)
            or (rest[0] == "(" and len(rest) < _MOST_PYTHON)
            or rest.lstrip().startswith("<arg_key>")
            or "<arg_key>".startswith(rest.lstrip())
        )
        return name[0] in self._tools and bool(more)

    def _whole(self, last: bool) -> list[Said] | None:
        """A call in a form that is read at its end, once that is there."""
        for form, end in ((_FUNCTION, "</function>"), (_PAIRED, "</tool_call>")):
            match = form.match(self._held) if end in self._held else None
            if match and match[1] in self._tools:
                self._consume(match.end())
                return self._call(match[1], self._from_tags(match[1], match[2]))
        match = _PYTHONIC.match(self._held)
        if match and match[1] in self._tools:
            for at in re.finditer(r"\)", self._held):
                arguments = _keywords(self._held[match.end(1) : at.end()])
                if arguments is not None:
                    self._consume(at.end())
                    return self._call(match[1], arguments)
        return None

    def _call(self, name: str, arguments: str) -> list[Said]:
        index = self.count
        self._ended()
        return [CallBegins(index, name), CallArguments(index, arguments)]

    def _from_tags(self, name: str, body: str) -> str:
        """Arguments out of tags around each one, or JSON between the outer tags."""
        if body.strip().startswith("{"):
            return body.strip()
        properties = self._tools[name].get("properties", {})
        found = {}
        for key, value, other_key, other_value in _PARAMETERS.findall(body):
            schema = properties.get((key or other_key).strip()) if isinstance(properties, dict) else None
            found[(key or other_key).strip()] = _value(value or other_value, schema)
        return json.dumps(found, ensure_ascii=False)

    def _scan(self, last: bool) -> Iterator[Said]:
        scanner = self._scanner
        assert scanner is not None
        self._consume(scanner.feed(self._held))
        self._pending += scanner.take()
        if not self._begun and scanner.name in self._tools:
            self._begun, self._raw = True, ""
            yield CallBegins(self.count, scanner.name or "")
        elif not self._begun and (scanner.done or scanner.name is not None or scanner.strange):
            yield from self._give_back()
            return
        if self._begun:
            self._raw = ""
            if scanner.done and not scanner.argued:
                self._pending = "{}"
            if self._pending:
                yield CallArguments(self.count, self._pending)
                self._pending = ""
            if scanner.done:
                self._ended()

    def _ended(self) -> None:
        self.count += 1
        self._raw, self._begun = "", False
        self._state = self._body if self._parallel else self._discard

    def _discard(self, last: bool) -> Iterator[Said]:
        """One call was wanted: what follows it isn't shown."""
        self._held = ""
        yield from ()

    def _give_back(self) -> Iterator[Said]:
        """It was no call after all."""
        if self._held.startswith("<function="):
            self._consume(1)  # else it would be taken for a beginning again
        raw, self._raw = self._raw, ""
        self._state = self._text
        if raw:
            yield Text(raw)


class NamedCall:
    """The whole reply is one call's arguments: a grammar saw to that."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.count = 0

    def feed(self, text: str) -> list[Said]:
        begins: list[Said] = [] if self.count else [CallBegins(0, self._name)]
        self.count = 1
        return [*begins, CallArguments(0, text)] if text else begins

    def finish(self) -> list[Said]:
        return []


def _overlap(text: str, marker: str) -> int:
    """Length of the longest proper prefix of `marker` that ends `text`."""
    return next((size for size in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:size])), 0)


def _value(text: str, schema: Any) -> Any:
    """A tag's text as JSON, unless its schema says that it is a string or it is none."""
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _keywords(call: str) -> str | None:
    """`(city="Paris", days=2)` as JSON; None unless it is whole and its values are literals."""
    try:
        tree = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args:
            return None
        return json.dumps({keyword.arg: ast.literal_eval(keyword.value) for keyword in tree.keywords if keyword.arg}, ensure_ascii=False)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
