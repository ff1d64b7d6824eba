"""Every name of transformers that isn't part of its documented interface, in one place with a test per supported version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def gguf_without_accelerate() -> Iterator[None]:
    """transformers asks for `accelerate` before it opens a GGUF file, even where nothing of it is used (no device map)."""
    import transformers.modeling_utils as modeling

    names: Any = modeling
    before = names.is_accelerate_available
    names.is_accelerate_available = lambda *_args, **_named: True
    try:
        yield
    finally:
        names.is_accelerate_available = before
