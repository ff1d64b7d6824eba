"""Several step frames as one: what a pass of a stage gave for the same next node travels, is sealed and arrives together.

A bundle begins with two zero bytes, where a step frame has the length of its head (which is never 0), then for each frame 4 bytes of
big-endian length and the frame. It is sent to those alone who said that they take bundles, and of how many. A bundle holds no bundle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from protocol import limits
from protocol.errors import BadInput

_MARK = b"\0\0"
_LENGTH = 4
AROUND = len(_MARK)
"""Bytes of a bundle beside its frames."""
EACH = _LENGTH
"""Bytes of a bundle beside each frame."""


def bundle(frames: Sequence[bytes]) -> bytes:
    """One frame of several; of a single one that itself."""
    if len(frames) == 1:
        return frames[0]
    joined = [_MARK]
    for frame in frames:
        joined += (len(frame).to_bytes(_LENGTH, "big"), frame)
    return b"".join(joined)


def is_bundle(frame: bytes | memoryview) -> bool:
    return bytes(frame[:AROUND]) == _MARK


def unbundle(frame: bytes | memoryview) -> list[memoryview]:
    """The step frames in it, one where it isn't a bundle; `BadInput` for lengths that don't add up, none or too many of them."""
    view = memoryview(frame)
    if not is_bundle(view):
        return [view]
    frames = list(_frames(view))
    if not frames:
        raise BadInput("bundle: no step frame in it")
    return frames


def _frames(view: memoryview) -> Iterator[memoryview]:
    at = AROUND
    for _ in range(limits.MAX_BUNDLE):
        if at == len(view):
            return
        begin = at + _LENGTH
        at = begin + int.from_bytes(view[begin - _LENGTH : begin], "big")
        if begin > len(view) or at > len(view):
            raise BadInput("bundle: a step frame is cut off")
        if is_bundle(view[begin:at]):
            raise BadInput("bundle: a bundle within")
        yield view[begin:at]
    if at != len(view):
        raise BadInput(f"bundle: over {limits.MAX_BUNDLE} step frames")
