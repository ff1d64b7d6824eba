"""Template, tokens and text of the demo model; templates that loop."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from bootstrap.demo_model import demo_model
from protocol import limits
from protocol.errors import BadInput
from runtime.text import ModelText, TextStream, _tokenizer, write_files
from tests.runtime.support import model_files
from tests.support.synthetic import write_tokenizer

MESSAGES = [{"role": "user", "content": "canary-7f3a ünï 🦆"}]
SLOW = "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return model_files(demo_model())


@pytest.fixture(scope="module")
def text(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    folder = tmp_path_factory.mktemp("text")
    write_files(folder, files)
    return ModelText(folder)


def with_template(files: dict[str, bytes], folder: Path, template: str) -> ModelText:
    write_files(folder, files | {"chat_template.jinja": template.encode()})
    return ModelText(folder)


def test_describes_the_model(text: ModelText) -> None:
    described = text.describe()
    assert (described.eos, described.context, described.has_template) == ([2], 8192, True)


def test_what_no_context_can_hold_is_refused_uncut(text: ModelText, monkeypatch: pytest.MonkeyPatch) -> None:
    """By characters, with the vocabulary's longest token as the measure; what may fit is cut."""
    longest = max(len(token) for token in text._tokenizer.get_vocab())
    assert len(text.encode_text("duck " * 9_000)) > 8_192
    monkeypatch.setattr(text, "_tokenizer", SimpleNamespace(get_vocab=text._tokenizer.get_vocab, chat_template="{{ '' }}"))
    monkeypatch.setattr(text, "_render", lambda messages, *_more: messages[0]["content"])
    past = "a" * (8_192 * longest + 1)
    for encode in (text.encode_text, lambda words: text.encode_chat([{"role": "user", "content": words}], False)):
        with pytest.raises(BadInput, match=f"{len(past)} characters, more than the 8192 tokens"):
            encode(past)


def test_a_reply_can_be_continued(text: ModelText) -> None:
    begun = [*MESSAGES, {"role": "assistant", "content": "Paris is"}]
    assert text.decode(text.encode_chat(begun, True)).endswith("Paris is")
    assert text.decode(text.encode_chat(MESSAGES, False)).rstrip().endswith("assistant")


@pytest.mark.parametrize("step", [1, 3])
def test_streamed_text_is_whole_characters_and_all_of_it(step: int, text: ModelText) -> None:
    wanted = "Ducks 🦆🦆, naïve 日本語 and  spaces\n\tend"
    tokens = text.encode_text(wanted)
    stream = TextStream(text)
    said = [stream.feed(tokens[at : at + step], False) for at in range(0, len(tokens), step)]
    said.append(stream.feed([], True))
    assert "".join(said) == wanted
    assert not any("\ufffd" in each for each in said)


def test_special_tokens_are_not_text(text: ModelText) -> None:
    assert TextStream(text).feed([1, 2], True) == ""


def test_half_a_character_is_flushed_at_the_end(text: ModelText) -> None:
    tokens = text.encode_text("🦆")
    stream = TextStream(text)
    assert stream.feed(tokens[:-1], False) == ""
    assert stream.feed([], True) == "\ufffd"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (SLOW, "took over 250 ms"),
        ("{{ 'a' * 999999999999999 }}", "MemoryError|OverflowError"),
        ("{% for a in range(10**9) %}{% endfor %}", "OverflowError"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError|UndefinedError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ raise_exception(messages[0]['content']) }}", "TemplateError"),
        ("{% include '/etc/passwd' %}", "TypeError|TemplateError|no loader"),
        ("{{ messages[0]['nothing']['at']['all'] }}", "UndefinedError"),
    ],
)
def test_hostile_templates_are_refused(template: str, said: str, files: dict[str, bytes], tmp_path: Path) -> None:
    bad = with_template(files, tmp_path, template)
    begun = time.monotonic()
    with pytest.raises(BadInput, match=said) as refused:
        bad.encode_chat(MESSAGES, False)
    assert time.monotonic() - begun < 2.5
    assert "canary" not in str(refused.value)


def test_without_a_template_messages_are_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    write_files(tmp_path, {name: data for name, data in files.items() if name != "chat_template.jinja"})
    with pytest.raises(BadInput, match="no chat template"):
        ModelText(tmp_path).encode_chat(MESSAGES, False)


@pytest.mark.parametrize("name", ["../x.json", "/etc/x.json", "a/b.json", "", ".hidden.json", "x" * 200 + ".json"])
def test_file_names_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="isn't a plain file name"):
        write_files(tmp_path / "m", {name: b"{}"})


def test_code_is_never_written(tmp_path: Path) -> None:
    write_files(tmp_path / "m", {"modeling_evil.py": b"x", "config.json": b"{}", "weights.bin": b"x"})
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["config.json"]


@pytest.mark.parametrize("broken", [b"{", b"[]", b'{"version": "9", "model": {"type": "Evil"}}'])
def test_a_broken_tokenizer_is_refused(broken: bytes, files: dict[str, bytes], tmp_path: Path) -> None:
    write_files(tmp_path, files | {"tokenizer.json": broken})
    with pytest.raises(BadInput, match="tokenizer can't be loaded"):
        ModelText(tmp_path)


def test_several_ends_are_all_known(files: dict[str, bytes], tmp_path: Path) -> None:
    write_files(tmp_path, files | {"generation_config.json": json.dumps({"eos_token_id": [0, 7]}).encode()})
    assert ModelText(tmp_path).describe().eos == [0, 2, 7]


@pytest.mark.parametrize("past", [0, 1])
def test_a_chat_template_one_past_the_limit(tmp_path: Path, past: int) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"chat_template": "x" * (limits.MAX_CHAT_TEMPLATE + past)}))
    if past:
        with pytest.raises(BadInput, match="chat template is longer"):
            _tokenizer(tmp_path)
    else:
        _tokenizer(tmp_path)
