"""Whether what is fetched now may wait for the replies that are computed on this machine.

A context variable, so that none of the parts between has to hand it down: tasks inherit it. A stage that a reply needs may not wait; a
copy of a model for a folder may.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_BEHIND: ContextVar[bool] = ContextVar("behind", default=False)


def is_behind() -> bool:
    return _BEHIND.get()


@contextmanager
def behind_replies() -> Iterator[None]:
    """What is fetched within gives way."""
    token = _BEHIND.set(True)
    try:
        yield
    finally:
        _BEHIND.reset(token)
