"""Long work in slices: between two of them the worker answers others and computes for them (runtime/engine.py).

A stage is loaded and tried in seconds, a large one in many; without this all replies of the worker, and the spelling of this node's own,
would stand still meanwhile. Rejected: a thread (transformers sets process-wide defaults while it builds a model, and two threads that
compute take each other's cores at every operation).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Sliced = Generator[None, None, T]
"""Yields between two slices; its result is returned at the end. Closing it gives the work up."""


def whole(work: Sliced[T]) -> T:
    """All of it at once."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: T = done.value
            return result
