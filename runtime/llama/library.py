"""llama.cpp's C interface, as the `xllamacpp` wheel exports it, through ctypes.

Its parameter structures change from build to build and carry no version: one field more, and everything behind it is read
from the wrong place. So exactly one wheel is taken, and before the first use the defaults that the library itself fills
in are compared with what they must be at each offset. The structures end in spare zeroed bytes: a field unknown at
the end is then nothing, not heap garbage.

Rejected: the wheel's own Python classes (whole models from files and a server of their own, no hidden states in or out),
cffi (a compiler or a parser at start for eighteen functions), building llama.cpp (ten minutes and a C++ compiler at the user's).
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import re
from collections import deque
from ctypes import c_bool, c_char_p, c_float, c_int32, c_size_t, c_ubyte, c_uint32, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from protocol.errors import Unavailable

WHEEL = "xllamacpp"
VERSION = "2026.10.11549"
P = TypeVar("P", bound=ctypes.Structure)
_SPARE = 128
_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
_ERROR_LEVEL = 4
EVALUATED = ctypes.CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)
"""(tensor, asking, -): asked for each node whether it is wanted; then called with it computed, and False ends the graph there."""


_said: deque[str] = deque(maxlen=4)
_sizes: list[tuple[str, int]] = []
_SIZE = re.compile(rb"(KV|output|compute) buffer size = +([0-9]+\.[0-9]+) MiB")


def _note(level: int, text: bytes | None, _data: object) -> None:
    if level == _ERROR_LEVEL and text:
        _said.append(text.decode(errors="replace").strip()[:200])
    if text and (found := _SIZE.search(text)) is not None:
        _sizes.append((found[1].decode(), int(float(found[2]) * 2**20)))


_hear = _LOG(_note)
"""Of the module, since llama.cpp calls it as long as the process lives."""


class ModelParams(ctypes.Structure):
    """`llama_model_params`."""

    _fields_ = [
        ("devices", c_void_p),
        ("buffer_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress", c_void_p),
        ("progress_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
        ("spare", c_ubyte * _SPARE),
    ]


class ContextParams(ctypes.Structure):
    """`llama_context_params`."""

    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope", c_float * 6),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("abort", c_void_p),
        ("abort_data", c_void_p),
        ("moe_cache_size", c_size_t),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("other", c_void_p),
        ("spare", c_ubyte * _SPARE),
    ]


class Batch(ctypes.Structure):
    """`llama_batch`: `token` or `embd`; addresses of arrays of `n_tokens` entries."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    ]


_MODEL_DEFAULTS = {
    "n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "main_gpu": 0, "use_extra_bufts": True, "no_alloc": False,
}  # fmt: skip
_CONTEXT_DEFAULTS = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "rope_scaling_type": -1, "pooling_type": -1, "attention_type": -1,
    "flash_attn_type": -1, "defrag_thold": -1.0, "cb_eval": None, "type_k": 1, "type_v": 1, "moe_cache_size": 0, "embeddings": False,
    "offload_kqv": True, "no_perf": True, "op_offload": True, "swa_full": True, "kv_unified": False, "n_samplers": 0,
}  # fmt: skip
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_LOG, c_void_p]),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits_ith": (c_void_p, [c_void_p, c_int32]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_state_seq_get_size": (c_size_t, [c_void_p, c_int32]),
    "llama_state_seq_get_data": (c_size_t, [c_void_p, c_void_p, c_size_t, c_int32]),
    "llama_state_seq_set_data": (c_size_t, [c_void_p, c_void_p, c_size_t, c_int32]),
    "ggml_get_name": (c_char_p, [c_void_p]),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
}


class Library:
    """The functions, typed; `said` the last things llama.cpp complained of, `sizes` (what for, bytes) of the buffers that it says it took,
    which nothing else tells: whoever makes something clears them first."""

    def __init__(self, path: Path) -> None:
        self.said, self.sizes = _said, _sizes
        self._library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("llama_"), function)
        self._library.llama_log_set(_hear, None)
        self._library.llama_backend_init()
        _compare(self.model_params(), _MODEL_DEFAULTS)
        _compare(self.context_params(), _CONTEXT_DEFAULTS)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def model_params(self) -> ModelParams:
        params: ModelParams = self._library.llama_model_default_params()
        return _zero_spare(params, ModelParams)

    def context_params(self) -> ContextParams:
        params: ContextParams = self._library.llama_context_default_params()
        return _zero_spare(params, ContextParams)

    def why(self) -> str:
        return "; ".join(self.said) or "it gave no reason"


def _zero_spare(params: P, kind: Any) -> P:
    ctypes.memset(ctypes.addressof(params) + kind.spare.offset, 0, _SPARE)
    return params


def _compare(params: Any, wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        found = getattr(params, name)
        if found != value:
            raise Unavailable(f"this llama.cpp lays its parameters out otherwise: {name} is {found!r} by default, {value!r} was expected")


def missing() -> str | None:
    """Why llama.cpp can't be used here, None when it can be tried."""
    try:
        found = importlib.metadata.version(WHEEL)
    except importlib.metadata.PackageNotFoundError:
        return "it isn't installed (pip install 'modelfloat[llamacpp]')"
    if found != VERSION:
        return f"{WHEEL} {found} is installed, {VERSION} is needed"
    return None if _path() is not None else f"{WHEEL} has no library for this system"


def _path() -> Path | None:
    spec = importlib.util.find_spec(WHEEL)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).glob(f"{WHEEL}*.so")):
            return path
    return None


@lru_cache(maxsize=1)
def library() -> Library:
    """Loaded once in a process; `Unavailable` says why it can't be."""
    why, path = missing(), _path()
    if why is not None or path is None:
        raise Unavailable(f"llama.cpp: {why}")
    try:
        return Library(path)
    except (OSError, AttributeError) as error:
        raise Unavailable(f"llama.cpp can't be loaded: {error}") from error
