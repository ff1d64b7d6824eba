"""A reply that goes on at another node when the one that makes it dies.

The node that was asked is the reply's entry: no other has it. But what came so far is here, and a chat's last message can be taken up:
the next node gets the conversation, the text received as the assistant's unfinished message, and goes on with it. So the reader sees a
pause. Errors that another node would give as well (a bad option, an unknown model) end it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from protocol.errors import MfError

Asker = Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], dict[str, Any]]
"""(what is asked, on_event) -> the last document."""
MOST_TOKENS = 1 << 31
"""Of one reply: a greater count is no count."""
ROUNDS = 2
"""Times that each node is tried for one reply without a word."""


def ask_in_turn(askers: Sequence[Asker], asked: dict[str, Any], on_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The reply's last document; `continued` counts the nodes it was taken up at. Raises the last error when none goes on."""
    got: list[str] = []
    fruitless, turn, continued, made, here = 0, 0, 0, 0, 0  # tokens `made` by those that died, by the one `here`

    def heard(event: dict[str, Any]) -> None:
        nonlocal fruitless, here
        if event.get("event") == "text" and event.get("text"):
            got.append(str(event["text"]))
            fruitless, here = 0, _tokens(event, here)
        if event.get("event") != "planned" or not continued:
            on_event(event)

    while True:
        here = 0
        try:
            end = askers[turn % len(askers)](_rest(asked, "".join(got), made), heard)
        except MfError as error:
            made += here
            fruitless, turn = fruitless + 1, turn + 1
            if len(askers) == 1 or error.status < 500 or fruitless >= ROUNDS * len(askers) or _used_up(asked, made):
                raise
            continued += 1
            continue
        if continued:
            end["completion_tokens"] = made + int(end.get("completion_tokens") or 0)
        return end | {"continued": continued}


def _tokens(event: dict[str, Any], before: int) -> int:
    """So many the node has made with this text, by its own count; one more where it tells none that can be."""
    told = event.get("tokens")
    return told if type(told) is int and max(before, 1) <= told < MOST_TOKENS else before + 1


def _rest(asked: dict[str, Any], text: str, made: int) -> dict[str, Any]:
    """What is still to be asked once `text` has come."""
    if not text:
        return asked
    rest = asked | {"messages": [*asked["messages"], {"role": "assistant", "content": text}], "continue_final": True}
    if asked.get("max_tokens"):
        rest["max_tokens"] = max(1, asked["max_tokens"] - made)
    return rest


def _used_up(asked: dict[str, Any], made: int) -> bool:
    return bool(asked.get("max_tokens")) and made >= asked["max_tokens"]
