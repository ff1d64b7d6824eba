"""Replies that keep to a grammar: llguidance says before each token which ones may come next.

A grammar is a program by a stranger. llguidance bounds its own work by fuel, but not all of it: counted repetitions (`(a{1000}){1000}`)
and long multiples run for minutes. So what counts too far is refused by its text, every call runs on a thread of its own under a
deadline, and one that overruns fails its request while the rest of the engine goes on. The thread can't be ended: it goes on at the
lowest priority, and once two are lost that way, grammars are refused until one comes back. Rejected: a child process for each grammar
(the sandbox forbids fork), trusting the fuel alone.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

import llguidance
import numpy as np
import torch

from protocol.errors import BadInput, Busy
from protocol.messages import Grammar

log = logging.getLogger(__name__)
T = TypeVar("T")
BUILD_SECONDS = 1.0
STEP_SECONDS = 0.25
MAX_COUNT = 20_000
"""Most repetitions of anything, nested ones multiplied."""
_KEPT = 32
_LOOK = 0.05
_PATIENCE = 60
_LOST = 2
_MAX_DEPTH = 64
_LIMITS = llguidance.LLParserLimits(
    max_grammar_size=50_000,
    initial_lexer_fuel=500_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)
_SPACE = {"whitespace_pattern": r"[ \n]{0,8}"}
"""JSON allows any amount of white space, and a model left free may write nothing else."""


class Matcher:
    """Where one reply stands in its grammar."""

    def __init__(self, inner: llguidance.LLMatcher, vocabulary: int, deadlines: Deadlines) -> None:
        self._inner = inner
        self._vocabulary = vocabulary
        self._deadlines = deadlines

    def copy(self) -> Matcher:
        return Matcher(self._inner.deep_copy(), self._vocabulary, self._deadlines)

    def allowed(self) -> torch.Tensor:
        """bool [vocabulary]: which tokens may come next, an end token once the reply may end. `BadInput` when it can't be said in time."""
        bits = self._deadlines.run(self._inner.compute_bitmask, STEP_SECONDS, "a step of the grammar")
        self._check()
        mask = np.zeros(self._vocabulary, dtype=bool)
        found = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")[: self._vocabulary]
        mask[: len(found)] = found
        if not mask.any():
            raise BadInput("grammar: no token of this model can go on from here", details={"param": "grammar"})
        return torch.from_numpy(mask)

    def accept(self, token: int) -> None:
        if not self._inner.is_stopped():
            self._deadlines.run(lambda: self._inner.consume_token(token), STEP_SECONDS, "a step of the grammar")
            self._check()

    def rewind(self, tokens: int) -> None:
        """Takes the last `tokens` back."""
        self._inner.rollback(tokens)
        self._check()

    def _check(self) -> None:
        if self._inner.is_error():
            raise _refused(self._inner.get_error())


class Grammars:
    """Compiled grammars of one model: `tokenizer` is transformers' own, `eos` ends a reply."""

    def __init__(self, tokenizer: Any, eos: list[int], vocabulary: int, deadlines: Deadlines) -> None:
        self._tokenizer = tokenizer
        self._eos = eos
        self._vocabulary = vocabulary
        self._deadlines = deadlines
        self._kept: OrderedDict[tuple[str, str], Matcher] = OrderedDict()

    def matcher(self, grammar: Grammar) -> Matcher:
        """At the grammar's beginning; `BadInput` for one that makes no sense, can't be met or takes too long to prepare."""
        key = (grammar.kind, grammar.text)
        if key not in self._kept:
            check_counts(grammar)
            inner = self._deadlines.run(functools.partial(self._build, grammar), BUILD_SECONDS, "preparing the grammar")
            if inner.is_error():
                raise _refused(inner.get_error())
            self._kept[key] = Matcher(inner, self._vocabulary, self._deadlines)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key].copy()

    @functools.cached_property
    def _words(self) -> llguidance.LLTokenizer:
        from llguidance.hf import from_tokenizer

        try:
            return from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._eos or None)
        except Exception as error:  # boundary: a stranger's tokenizer in a foreign library
            raise BadInput(f"this model's tokenizer can't be constrained by a grammar: {type(error).__name__}") from error

    def spell(self, token: int) -> bytes:
        """A token's own bytes; `BadInput` where the tokenizer doesn't tell."""
        return bytes(self._words.decode_bytes([token]))

    def _build(self, grammar: Grammar) -> llguidance.LLMatcher:
        try:
            return llguidance.LLMatcher(self._words, _source(grammar), log_level=0, limits=_LIMITS)
        except (ValueError, RecursionError) as error:
            raise _refused(str(error)) from error


def _source(grammar: Grammar) -> str:
    """The grammar in llguidance's own form."""
    if grammar.kind == "regex":
        return str(llguidance.LLMatcher.grammar_from_regex(grammar.text))
    if grammar.kind == "lark":
        return str(llguidance.LLMatcher.grammar_from_lark(grammar.text))
    schema = '{"type": "object"}' if grammar.kind == "json" else grammar.text
    return str(llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=_SPACE))


def _refused(why: str) -> BadInput:
    return BadInput(f"grammar: {' '.join(why.split())[:200]}", details={"param": "grammar"})


class Deadlines:
    """Runs native calls that nothing can end: who waits for one is free at the deadline."""

    def __init__(self) -> None:
        self._lost = 0
        self._lock = threading.Lock()

    def run(self, call: Callable[[], T], seconds: float, what: str) -> T:
        """The call's result; `BadInput` once it has taken `seconds` of processor time, `Busy` while too many threads are lost."""
        if self._lost >= _LOST:
            raise Busy("grammars that took too long still run here", hint="ask without a grammar, or later", details={"retry_after": 60})
        future: Future[T] = Future()
        thread = threading.Thread(target=_work, args=(future, call), daemon=True, name="grammar")
        thread.start()
        patience = time.monotonic() + _PATIENCE * seconds
        while True:
            try:
                return future.result(_LOOK)
            except FutureTimeout:
                if future.done():
                    continue
                if time.monotonic() > patience or _used(thread) > seconds:
                    break
        self._lose(future, thread)
        raise BadInput(f"{what} took over {seconds:g} s: it is too complex", details={"param": "grammar"})

    def _lose(self, future: Future[Any], thread: threading.Thread) -> None:
        with self._lock:
            self._lost += 1
        future.add_done_callback(self._came_back)
        log.warning("a grammar takes too long and was given up")
        if sys.platform == "linux" and thread.native_id is not None:
            os.setpriority(os.PRIO_PROCESS, thread.native_id, 19)  # there each thread has a priority of its own

    def _came_back(self, _future: Future[Any]) -> None:
        with self._lock:
            self._lost -= 1


def _work(future: Future[Any], call: Callable[[], Any]) -> None:
    try:
        result = call()
    except BaseException as error:  # boundary: handed to the thread that asked
        future.set_exception(error)
    else:
        future.set_result(result)


def _used(thread: threading.Thread) -> float:
    """Processor seconds of a running thread: a machine that is busy elsewhere is no fault of the grammar. 0 where nobody tells."""
    clock = getattr(time, "pthread_getcpuclockid", None)
    if clock is None or thread.ident is None or not thread.is_alive():
        return 0.0
    return time.clock_gettime(clock(thread.ident))


_COUNT = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}|~\s*(\d+)(?:\s*\.\.\s*(\d+))?")


def check_counts(grammar: Grammar) -> None:
    """Refuses what counts beyond `MAX_COUNT`, nested repetitions multiplied; of a schema all its patterns and multiples."""
    if grammar.kind == "regex":
        _check_pattern(grammar.text)
    elif grammar.kind == "lark":
        for pattern in re.findall(r"/((?:[^/\\\n]|\\.)*)/", grammar.text):
            _check_pattern(pattern)
        _check_most(max([_most(found) for found in _COUNT.finditer(grammar.text)], default=0))
    elif grammar.kind == "json_schema":
        try:
            _check_schema(json.loads(grammar.text), 0)
        except (ValueError, RecursionError) as error:
            raise BadInput("grammar: the schema isn't JSON", details={"param": "grammar"}) from error


def _check_schema(node: Any, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _refused(f"the schema nests deeper than {_MAX_DEPTH}")
    if isinstance(node, list):
        for one in node:
            _check_schema(one, depth + 1)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name == "pattern" and isinstance(value, str):
                _check_pattern(value)
            if name == "multipleOf" and isinstance(value, int | float):
                _check_most(value)
            if name == "patternProperties" and isinstance(value, dict):
                for pattern in value:
                    _check_pattern(pattern)
            _check_schema(value, depth + 1)


def _check_pattern(pattern: str) -> None:
    """Counts along the nesting: what stands side by side adds up, what is repeated multiplies."""
    sums, last, at = [0], 1, 0
    while at < len(pattern):
        char, counted = pattern[at], _COUNT.match(pattern, at) if pattern[at] == "{" else None
        if char == "\\":
            at, last = at + 1, 1
        elif char == "[":
            at, last = _class_end(pattern, at), 1
        elif char == "(":
            sums.append(0)
            last = 0
        elif char == ")" and len(sums) > 1:
            last = sums.pop()
        elif counted is not None:
            sums[-1] += last * (_most(counted) - 1)
            at, last = counted.end() - 1, last * _most(counted)
            _check_most(last)
            at += 1
            continue
        else:
            last = 1
        if char != "(":
            sums[-1] += last
        at += 1
    _check_most(sum(sums))


def _class_end(pattern: str, at: int) -> int:
    end = at + 2 if pattern[at + 1 : at + 2] in ("]", "^") else at + 1
    while end < len(pattern) and pattern[end] != "]":
        end += 2 if pattern[end] == "\\" else 1
    return end


def _most(found: re.Match[str]) -> int:
    numbers = [int(one[:9]) for one in found.groups() if one]
    return max(numbers, default=1)


def _check_most(count: float) -> None:
    if count > MAX_COUNT:
        raise _refused(f"it repeats something {count:g} times, at most {MAX_COUNT} are allowed")
