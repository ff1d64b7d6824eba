"""Replies that keep to a grammar, and grammars made to hurt."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from protocol.errors import BadInput, Busy
from protocol.messages import Grammar, Sampling
from runtime.grammar import MAX_COUNT, Deadlines, Grammars, check_counts
from runtime.reply_state import ReplyState

END = 256


def byte_tokenizer() -> Any:
    """A token for each byte, one more that ends a reply."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({char: number for number, char in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(byte_tokenizer(), [END], 300, Deadlines())


def reply(grammars: Grammars, grammar: Grammar, seed: int = 1, most: int = 200) -> str:
    """What a model without any opinion says under `grammar`."""
    state = ReplyState(Sampling(temperature=1.0, grammar=grammar), seed, grammars.matcher(grammar))
    said = b""
    for position in range(most):
        token = state.choose_all(torch.zeros(1, 300), position, [])[0].token
        if token == END:
            return said.decode()
        said += grammars.spell(token)
    raise AssertionError(f"no end within {most} tokens")


def test_a_regex_is_kept(grammars: Grammars) -> None:
    for seed in range(5):
        assert re.fullmatch(r"[ab]{3}-[0-9]{2}", reply(grammars, Grammar(kind="regex", text=r"[ab]{3}-[0-9]{2}"), seed))


def test_a_lark_grammar_is_kept(grammars: Grammars) -> None:
    text = 'start: "<" (start | "x") ">"'
    for seed in range(5):
        said = reply(grammars, Grammar(kind="lark", text=text), seed)
        depth = said.count("<")
        assert said == "<" * depth + "x" + ">" * depth


def test_a_schema_is_kept(grammars: Grammars) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"type": "boolean"}},
        "required": ["n", "b"],
        "additionalProperties": False,
    }
    for seed in range(3):
        said = json.loads(reply(grammars, Grammar(kind="json_schema", text=json.dumps(schema)), seed))
        assert set(said) == {"n", "b"}
        assert 0 <= said["n"] <= 99


def test_json_begins_as_an_object(grammars: Grammars) -> None:
    matcher = grammars.matcher(Grammar(kind="json"))
    allowed = {grammars.spell(token) for token in matcher.allowed().nonzero()[:, 0].tolist()}
    assert b"{" in allowed
    assert b"[" not in allowed


def test_a_replay_goes_on_where_the_reply_was(grammars: Grammars) -> None:
    grammar = Grammar(kind="regex", text="abcd|abxy")
    letters = {grammars.spell(token): token for token in range(256)}
    state = ReplyState(Sampling(grammar=grammar), 1, grammars.matcher(grammar), [letters[b"a"], letters[b"b"]])
    open_now = set(state.ask(2).allowed.nonzero()[:, 0].tolist())  # type: ignore[union-attr]
    assert open_now == {letters[b"c"], letters[b"x"]}
    state.accept(letters[b"x"])
    assert set(state.ask(3).allowed.nonzero()[:, 0].tolist()) == {letters[b"y"]}  # type: ignore[union-attr]
    again = state.ask(1).allowed  # type: ignore[union-attr]
    assert set(again.nonzero()[:, 0].tolist()) == {letters[b"b"]}


def test_drafts_are_taken_as_far_as_they_are_chosen(grammars: Grammars) -> None:
    grammar = Grammar(kind="regex", text="abcdef")
    letters = [token for byte in b"abcdef" for token in range(256) if grammars.spell(token) == bytes([byte])]
    state = ReplyState(Sampling(grammar=grammar), 1, grammars.matcher(grammar))
    made = state.choose_all(torch.zeros(4, 300), 0, [letters[0], letters[1], letters[5]])
    assert [chosen.token for chosen in made] == letters[:3]
    assert [chosen.token for chosen in state.choose_all(torch.zeros(1, 300), 3, [])] == [letters[3]]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", "(a{1000}){1000}"),
        ("regex", "((a{0,100}b){100}[{}x]){3}"),
        ("regex", "a{1000000}"),
        ("regex", "(" * 20_000 + "a" + ")" * 20_000),
        ("lark", 'start: a\na: b{100000}\nb: "x"'),
        ("lark", 'start: A\nA: B~1..100000\nB: "x"'),
        ("lark", "start: /(a{1000}){1000}/"),
        ("lark", "start: nobody"),
        ("regex", "("),
        ("json_schema", "{"),
        ("json_schema", "[" * 50_000),
        ("json_schema", '{"type": "array", "items": ' * 70 + "{}" + "}" * 70),
        ("json_schema", '{"type": "integer", "multipleOf": 99999999}'),
        ("json_schema", '{"type": "string", "pattern": "(a{1000}){1000}"}'),
        ("json_schema", '{"type": "object", "patternProperties": {"(a{1000}){1000}": {}}}'),
        ("json_schema", '{"$ref": "http://example.org/schema"}'),
        ("json_schema", '{"type": "nothing"}'),
    ],
)
def test_grammars_made_to_hurt_are_refused_at_once(kind: str, text: str, grammars: Grammars) -> None:
    begun = time.thread_time()
    with pytest.raises(BadInput, match=r"^grammar: ") as raised:
        grammars.matcher(Grammar(kind=kind, text=text))
    assert len(raised.value.message) < 300
    assert time.thread_time() - begun < 3.0


@pytest.mark.parametrize("text", [r"[\w.]{1,64}@[a-z]{1,255}\.[a-z]{2,24}", r"\{9999999\}", "[{9999999}]a", f"(ab){{{MAX_COUNT // 2}}}"])
def test_what_is_usual_is_counted_right(text: str) -> None:
    check_counts(Grammar(kind="regex", text=text))


def test_a_count_one_past_the_bound_is_refused() -> None:
    with pytest.raises(BadInput, match="repeats something"):
        check_counts(Grammar(kind="regex", text=f"(ab){{{MAX_COUNT // 2 + 1}}}"))


def test_what_takes_too_long_is_given_up_and_comes_back() -> None:
    deadlines, over = Deadlines(), threading.Event()

    def spin() -> None:
        while not over.is_set():
            pass

    for _ in range(2):
        with pytest.raises(BadInput, match=r"spinning took over 0\.05 s"):
            deadlines.run(spin, 0.05, "spinning")
    with pytest.raises(Busy):
        deadlines.run(lambda: None, 0.05, "nothing")
    over.set()
    for thread in [thread for thread in threading.enumerate() if thread.name == "grammar"]:
        thread.join(10)
    assert deadlines.run(lambda: 7, 0.05, "seven") == 7
