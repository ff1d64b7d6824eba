"""One call as a JSON object that comes in parts: its name, and its arguments character for character.

A client that streams wants arguments as the model writes them, so the object can't be parsed at its end. The scanner only follows
strings and brackets: enough to know where the members of the outermost object begin and end.
"""

from __future__ import annotations

import json

_ARGUMENTS = frozenset({"arguments", "parameters"})
_KEYS = _ARGUMENTS | {"name", "type", "function", "id"}
_OPEN, _CLOSE = "{[", "}]"


class CallScanner:
    """Feed it from the object's `{` on. `name` once it is known; `take()` gives what came of the arguments; `done` at the object's end."""

    def __init__(self, *, nested: bool = True) -> None:
        self.name: str | None = None
        self.done = False
        self._nested = nested
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._key: str | None = None
        self._first: str | None = None
        self._part: list[str] = []
        self._streams = False
        """What is collected is the arguments' own object."""
        self._whole = False
        """The arguments are complete."""
        self._fresh: list[str] = []
        self._alone = False

    @classmethod
    def of(cls, name: str) -> CallScanner:
        """For a call whose name stood before: the object is its arguments."""
        scanner = cls()
        scanner.name, scanner._alone, scanner._depth, scanner._key = name, True, 1, "arguments"
        return scanner

    @property
    def strange(self) -> bool:
        """Whether the object has begun with what no call begins with."""
        return self._first is not None and self._first not in _KEYS

    @property
    def argued(self) -> bool:
        """Whether there were arguments."""
        return self._whole or self._streams

    def take(self) -> str:
        fresh, self._fresh = "".join(self._fresh), []
        return fresh

    def feed(self, text: str) -> int:
        """How many characters belonged to the object."""
        for at, character in enumerate(text):
            if self.done:
                return at
            self._take(character)
        return len(text)

    def _take(self, character: str) -> None:
        if self._in_string:
            self._collect(character)
            self._in_string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        elif character in _CLOSE:
            self._close(character)
        elif self._depth == 1 and character in ":,":
            self._divide(character)
        else:
            self._in_string = character == '"'
            if self._depth:
                self._collect(character)
            if character in _OPEN:
                self._depth += 1

    def _close(self, character: str) -> None:
        self._depth -= 1
        if self._depth:
            self._collect(character)
            if self._streams and self._depth == 1:
                self._streams, self._whole = False, True
                self.done = self._alone
        else:
            self._end_member()
            self.done = True

    def _divide(self, character: str) -> None:
        if character == ",":
            self._end_member()
        elif self._key is None:
            self._key, self._part = _string("".join(self._part)) or "", []
            self._first = self._key if self._first is None else self._first

    def _collect(self, character: str) -> None:
        if not self._part and character.isspace():
            return
        if not self._part and character == "{" and self._key in _ARGUMENTS and not self._whole:
            self._streams = True
        self._part.append(character)
        if self._streams:
            self._fresh.append(character)

    def _end_member(self) -> None:
        value, self._part = "".join(self._part).strip(), []
        key, self._key = self._key, None
        if key == "name":
            self.name = _string(value)
        elif key in _ARGUMENTS and not self._whole:
            self._whole = True  # null, or JSON once more in a string
            self._fresh.append(_string(value) or "{}")
        elif key == "function" and value.startswith("{") and self._nested:
            inner = CallScanner(nested=False)
            inner.feed(value)
            self.name, self._whole = inner.name, True
            self._fresh.append(inner.take())


def _string(text: str) -> str | None:
    """The JSON string that `text` is."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
