"""The stage's side of audits: what it computed, kept for half a second, then printed and signed for the entry.

On the way of a step nothing is done but to remember two buffers; prints are made between steps, 256 rows at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from protocol import limits
from protocol.errors import BadInput
from protocol.messages import Checked, OpenSession, StageSpec
from protocol.prints import PRINT_KEY, Prints, token_print
from runtime.fingerprint import Printer
from runtime.interface import UNCHECKED, Step, Stepped
from runtime.memory import TRAVELS

_WIDTH = {"bf16": 2, "fp32": 4}
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


class Statements:
    """Of one session on one stage; makes nothing where the entry gave no key. `BadInput` for a key or check that can't be."""

    def __init__(self, request: OpenSession, spec: StageSpec, seal: Seal | None) -> None:
        if request.prints is not None and len(request.prints) != PRINT_KEY:
            raise BadInput(f"session: a key for prints has {PRINT_KEY} bytes")
        _check_checked(request.check)
        self._request, self._spec, self._seal = request, spec, seal
        self._key = request.prints if seal is not None else None
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
        if self._key is not None:
            self._done.append(_Done(step.position, step.count, step.tokens, step.hidden, done.hidden, done.gaps))

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
            sealed.append(self._sealed(self._merge(done)))
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
        hidden, out = (
            None if getattr(done, side) is None else b"".join(getattr(each, side) or b"" for each in following)
            for side in ("hidden", "out")
        )
        return _Done(done.position, len(following), tokens, hidden, out, gaps)

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
            )
        )

    def _print(self, raw: bytes, count: int) -> bytes:
        assert self._key is not None
        dtype = TRAVELS[self._request.precision]
        if self._printer is None:
            self._printer = Printer(self._key, len(raw) // count // _WIDTH[dtype])
        return self._printer.of(raw, dtype)


def _cut(done: _Done) -> list[_Done]:
    """Steps of at most MAX_PRINT_ROWS rows."""
    size = limits.MAX_PRINT_ROWS

    def side(raw: bytes | None, at: int) -> bytes | None:
        width = len(raw) // done.count if raw else 0
        return None if raw is None else raw[at * width : (at + size) * width]

    return [
        _Done(
            done.position + at,
            min(size, done.count - at),
            None if done.tokens is None else done.tokens[at : at + size],
            side(done.hidden, at),
            side(done.out, at),
            None if done.gaps is None else done.gaps[at : at + size],
        )
        for at in range(0, done.count, size)
    ]


def _check_checked(check: Checked | None) -> None:
    if check is None:
        return
    if (
        not 0 < check.position < 1 << 31
        or len(check.tokens) > limits.MAX_CHECKED
        or any(not 0 <= token < 1 << 31 for token in check.tokens)
    ):
        raise BadInput(f"session: a check names a position and at most {limits.MAX_CHECKED} tokens")
