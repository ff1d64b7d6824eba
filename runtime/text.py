"""Tokenizer and chat template of a model, and text out of a stream of tokens.

A template is a program by a stranger. transformers renders it in jinja2's immutable sandbox, which stops it from touching
objects but not from looping, so a timer signal ends it after 250 ms on the processor (to wait for one isn't its fault). The signal's
exception isn't an `Exception`: nothing in the template engine can swallow it. (A thread can't be ended, a trace function slows every
line.)
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import AutoTokenizer

from protocol import limits
from protocol.errors import BadInput, MfError
from protocol.messages import TokenLogprob
from runtime.grammar import Deadlines, Grammars
from runtime.interface import SpelledToken, TextLoaded
from runtime.model_config import context_of, read_config
from runtime.tool_prompt import in_words, knows_tools

RENDER_SECONDS = 0.25
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
_HELD_BACK = "\ufffd"


class _TooLong(BaseException):
    """Raised by the timer inside of a template."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `_TooLong` in the main thread after the process computed for `seconds`."""

    def ring(_signal: int, _frame: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Puts the files a tokenizer or config may consist of into `folder`; other kinds (code, pictures) are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        if not _NAME.match(name):
            raise BadInput(f"load_text: {name[:128]!r} isn't a plain file name")
        if name.endswith(_SUFFIXES):
            (folder / name).write_bytes(data)


class ModelText:
    """Text side of one model, from its files in `folder`."""

    def __init__(self, folder: Path, deadlines: Deadlines | None = None) -> None:
        self.config = read_config(folder)
        self._tokenizer = _tokenizer(folder)
        self._eos = _eos(folder, self.config, self._tokenizer)
        self._longest: int | None = None
        vocabulary = int(self.config.get_text_config(decoder=True).vocab_size)
        self.grammars = Grammars(self._tokenizer, self._eos, vocabulary, deadlines or Deadlines())

    def describe(self) -> TextLoaded:
        return TextLoaded(eos=self._eos, context=context_of(self.config), has_template=bool(self._tokenizer.chat_template))

    def encode_text(self, text: str) -> list[int]:
        self._check_room(text)
        return [int(token) for token in self._tokenizer(text)["input_ids"]]

    def encode_chat(self, messages: list[dict[str, Any]], continue_final: bool, tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Token ids of the rendered conversation; `BadInput` when the template refuses it or takes too long."""
        rendered = self._render(messages, continue_final, tools)
        self._check_room(rendered)
        return [int(token) for token in self._tokenizer(rendered, add_special_tokens=False)["input_ids"]]

    def _check_room(self, text: str) -> None:
        """What the context can't hold however it is cut is refused uncut: megabytes would take the tokenizer seconds, in which no reply
        goes on, and gigabytes of memory."""
        context = context_of(self.config)
        if context is None or len(text) <= context:
            return
        if self._longest is None:
            self._longest = max(len(token) for token in self._tokenizer.get_vocab())
        if len(text) > context * self._longest:
            said = f"the prompt has {len(text)} characters, more than the {context} tokens that the model takes can hold"
            raise BadInput(said, details={"context": context})

    def decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def spell(self, one: TokenLogprob) -> SpelledToken:
        """A token by itself: its bytes, and as text what of them is whole characters."""
        try:
            raw = self.grammars.spell(one.token)
        except BadInput:  # a tokenizer that tells no bytes
            raw = str(self._tokenizer.decode([one.token], clean_up_tokenization_spaces=False)).encode()
        return SpelledToken(raw.decode(errors="replace"), raw, one.logprob)

    def _render(self, messages: list[dict[str, Any]], continue_final: bool, tools: list[dict[str, Any]] | None) -> str:
        if not self._tokenizer.chat_template:
            raise BadInput("this model has no chat template", hint="ask it with a plain text instead of messages")
        if not knows_tools(self._tokenizer.chat_template):
            messages, tools = in_words(messages, tools), None
        try:
            with time_limit(RENDER_SECONDS):
                rendered = self._tokenizer.apply_chat_template(
                    messages, tools=tools, tokenize=False, add_generation_prompt=not continue_final, continue_final_message=continue_final
                )
        except _TooLong:
            raise BadInput(f"the model's chat template took over {RENDER_SECONDS * 1000:.0f} ms and was ended") from None
        except (TemplateError, ValueError, TypeError, KeyError, OverflowError, MemoryError, RecursionError) as error:
            raise BadInput(f"the model's chat template refused the conversation: {type(error).__name__}: {_brief(error)}") from error
        if not isinstance(rendered, str):
            raise BadInput("the model's chat template gave no text")
        return rendered


def _brief(error: BaseException) -> str:
    """Where a template is broken, but never what it raised itself: that may hold the conversation."""
    return str(error)[:200] if isinstance(error, TemplateSyntaxError) else "it raised this for these messages"


def _tokenizer(folder: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        template = tokenizer.chat_template
    except MfError:
        raise
    except Exception as error:  # boundary: a hostile tokenizer file may raise anything
        raise BadInput(f"the tokenizer can't be loaded: {type(error).__name__}: {str(error)[:300]}") from error
    if template is not None and len(str(template)) > limits.MAX_CHAT_TEMPLATE:
        raise BadInput(f"the chat template is longer than {limits.MAX_CHAT_TEMPLATE} characters")
    return tokenizer


def _eos(folder: Path, config: Any, tokenizer: Any) -> list[int]:
    """Ids that end a reply, from wherever the model's files name them."""
    found: set[int] = set()
    generation = folder / "generation_config.json"
    try:
        named = json.loads(generation.read_bytes()).get("eos_token_id") if generation.exists() else None
    except (ValueError, AttributeError) as error:
        raise BadInput(f"generation_config.json can't be read: {error}") from error
    for value in (named, getattr(config, "eos_token_id", None), tokenizer.eos_token_id):
        found.update(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))
    return sorted(found)


class TextStream:
    """Whole characters out of tokens as they come; what isn't a whole character yet is held back."""

    def __init__(self, text: ModelText) -> None:
        self._text = text
        self.spell = text.spell
        self._tokens: list[int] = []
        self._from = 0
        self._said = 0

    def feed(self, tokens: list[int], last: bool) -> str:
        """New text, maybe empty. A few tokens are decoded again each time, since spaces depend on the neighbour."""
        self._tokens += tokens
        before = self._text.decode(self._tokens[self._from : self._said])
        now = self._text.decode(self._tokens[self._from :])
        if len(now) <= len(before) or (now.endswith(_HELD_BACK) and not last):
            return ""
        self._from, self._said = self._said, len(self._tokens)
        return now[len(before) :]
