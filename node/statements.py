"""The stage's side of audits: what it computed, kept for half a second, then printed and signed for the entry.

On the way of a step nothing is done but to remember two buffers; prints are made between steps, 256 rows at a time. Rows beyond those
an entry looks at aren't remembered, nor any for which a node's bound on all sessions together leaves no room: they are never spoken of.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from node.heard import MAX_ROWS
from node.step_log import LogRoom
from protocol import limits
from protocol.errors import BadInput
from protocol.messages import Checked, OpenSession, StageSpec
from protocol.prints import NO_TOKEN, PRINT_KEY, Prints, token_print
from runtime.fingerprint import Printer
from runtime.interface import UNCHECKED, Step, Stepped
from runtime.memory import TRAVELS

_WIDTH = {"bf16": 2, "fp32": 4}
WAITING_BYTES = 64 * limits.MIB
"""Rows of all sessions of a node that wait for their prints."""
Seal = Callable[[Prints], bytes]


@dataclass(frozen=True)
class _Done:
    """Rows of one step."""

    position: int
    count: int
    tokens: list[int] | None
    hidden: bytes | None
    out: bytes | None
    gaps: list[float] | None
    given: list[int] | None = None
    """Of a last stage the token after each row, UNCHECKED where there is none."""

    @property
    def size(self) -> int:
        return len(self.hidden or b"") + len(self.out or b"")


class Statements:
    """Of one session on one stage; makes nothing where the entry gave no key. `BadInput` for a key or check that can't be."""

    def __init__(self, request: OpenSession, spec: StageSpec, seal: Seal | None, room: LogRoom | None = None) -> None:
        if request.prints is not None and len(request.prints) != PRINT_KEY:
            raise BadInput(f"session: a key for prints has {PRINT_KEY} bytes")
        _check_checked(request.check)
        self._request, self._spec, self._seal = request, spec, seal
        self._key = request.prints if seal is not None else None
        self._room = room or LogRoom(WAITING_BYTES)
        self._done: deque[_Done] = deque()
        self._printer: Printer | None = None

    @property
    def asked(self) -> bool:
        """Whether the entry wants prints, and this node signs them."""
        return self._key is not None

    def given(self, position: int, count: int) -> list[int] | None:
        """What an audit says came after each of these rows; None where nothing is checked among them."""
        check = self._request.check
        if check is None:
            return None
        places = range(position + 1 - check.position, position + 1 - check.position + count)
        given = [check.tokens[place] if 0 <= place < len(check.tokens) else UNCHECKED for place in places]
        return given if any(token != UNCHECKED for token in given) else None

    def add(self, step: Step, done: Stepped) -> None:
        """A step was computed."""
        if self._key is None or step.position >= MAX_ROWS:
            return
        computed = _Done(step.position, step.count, step.tokens, step.hidden, done.hidden, done.gaps, self._tokens_after(step, done))
        computed = _part(computed, 0, min(step.count, MAX_ROWS - step.position))
        if self._room.take(computed.size):
            self._done.append(computed)

    def _tokens_after(self, step: Step, done: Stepped) -> list[int] | None:
        """Those made, or those to be checked where any are."""
        if self._request.check is not None:
            return step.check
        if done.token is None:
            return None
        made, first = [done.token, *(done.more or ())], step.count - 1 - step.guessed
        return [*[UNCHECKED] * first, *made, *[UNCHECKED] * (step.count - first - len(made))]

    def drop(self) -> None:
        """The session is over: what wasn't told isn't."""
        self._room.give(sum(done.size for done in self._done))
        self._done.clear()

    def truncate(self, position: int) -> None:
        """The session goes on from there: rows beyond are computed again, and what wasn't told of them isn't."""
        waiting, self._done = self._done, deque()
        for done in waiting:
            kept = _part(done, 0, min(done.count, max(0, position - done.position)))
            self._room.give(done.size - kept.size)
            if kept.count:
                self._done.append(kept)

    def take(self) -> list[bytes]:
        """The oldest rows not told yet, at most MAX_PRINT_ROWS of them, as signed statements."""
        sealed: list[bytes] = []
        rows = 0
        while self._done and rows < limits.MAX_PRINT_ROWS:
            done = self._done.popleft()
            if done.count > limits.MAX_PRINT_ROWS:
                self._done.extendleft(reversed(_cut(done)))
                continue
            if rows and rows + done.count > limits.MAX_PRINT_ROWS:
                self._done.appendleft(done)
                break
            rows += done.count
            merged = self._merge(done)
            self._room.give(merged.size)
            sealed.append(self._sealed(merged))
        return sealed

    def _merge(self, done: _Done) -> _Done:
        """With the single steps that follow it, so that one signature is enough for many tokens."""
        following = [done]
        while self._done and len(following) < limits.MAX_PRINT_ROWS and self._done[0].count == done.count == 1:
            after = self._done[0]
            if after.position != following[-1].position + 1:
                break
            following.append(self._done.popleft())
        if len(following) == 1:
            return done
        tokens = None if done.tokens is None else [token for each in following for token in each.tokens or ()]
        gaps = None if done.gaps is None else [gap for each in following for gap in each.gaps or [float(UNCHECKED)]]
        given = None if done.given is None else [token for each in following for token in each.given or [UNCHECKED]]
        hidden, out = (
            None if getattr(done, side) is None else b"".join(getattr(each, side) or b"" for each in following)
            for side in ("hidden", "out")
        )
        return _Done(done.position, len(following), tokens, hidden, out, gaps, given)

    def _sealed(self, done: _Done) -> bytes:
        assert self._key is not None
        assert self._seal is not None
        if done.tokens is not None:
            inputs = b"".join(token_print(self._key, done.position + at, token) for at, token in enumerate(done.tokens))
        else:
            inputs = self._print(done.hidden or b"", done.count)
        request, spec = self._request, self._spec
        return self._seal(
            Prints(
                session=request.session,
                model=request.model,
                precision=request.precision,
                first=spec.first,
                end=spec.end,
                position=done.position,
                count=done.count,
                inputs=inputs,
                outputs=None if done.out is None else self._print(done.out, done.count),
                gaps=done.gaps,
                given=None if done.given is None else self._given(done.position, done.given),
            )
        )

    def _given(self, position: int, tokens: list[int]) -> bytes:
        assert self._key is not None
        key = self._key
        prints = (NO_TOKEN if token == UNCHECKED else token_print(key, position + at + 1, token) for at, token in enumerate(tokens))
        return b"".join(prints)

    def _print(self, raw: bytes, count: int) -> bytes:
        assert self._key is not None
        dtype = TRAVELS[self._request.precision]
        if self._printer is None:
            self._printer = Printer(self._key, len(raw) // count // _WIDTH[dtype])
        return self._printer.of(raw, dtype)


def _cut(done: _Done) -> list[_Done]:
    """Steps of at most MAX_PRINT_ROWS rows."""
    size = limits.MAX_PRINT_ROWS
    return [_part(done, at, min(at + size, done.count)) for at in range(0, done.count, size)]


def _part(done: _Done, start: int, end: int) -> _Done:
    """Rows [start, end) of these."""
    if (start, end) == (0, done.count):
        return done

    def side(raw: bytes | None) -> bytes | None:
        width = len(raw) // done.count if raw else 0
        return None if raw is None else raw[start * width : end * width]

    return _Done(
        done.position + start,
        end - start,
        None if done.tokens is None else done.tokens[start:end],
        side(done.hidden),
        side(done.out),
        None if done.gaps is None else done.gaps[start:end],
        None if done.given is None else done.given[start:end],
    )


def _check_checked(check: Checked | None) -> None:
    if check is None:
        return
    if (
        not 0 < check.position < 1 << 31
        or len(check.tokens) > limits.MAX_CHECKED
        or any(not 0 <= token < 1 << 31 for token in check.tokens)
    ):
        raise BadInput(f"session: a check names a position and at most {limits.MAX_CHECKED} tokens")
