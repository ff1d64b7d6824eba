"""How kernels are compiled: without the interpreter, with the order of additions as written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

kernel: Callable[..., Any] = njit(nogil=True, error_model="numpy", boundscheck=False, fastmath=False)
"""A function that others call."""
part: Callable[..., Any] = njit(nogil=True, error_model="numpy", boundscheck=False, fastmath=False, inline="never", forceinline=True)
"""The same, laid into whoever calls it."""
