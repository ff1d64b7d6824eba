from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from node.logs import configure_logs, redact

CANARY = "canary-7f3a"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = before
    root.setLevel(level)


def _line(stream: io.StringIO) -> dict[str, Any]:
    document = json.loads(stream.getvalue())
    assert isinstance(document, dict)
    return document


def test_a_json_line_has_the_event_and_its_fields(stream: io.StringIO) -> None:
    configure_logs("json", stream=stream)
    logging.getLogger("node.x").info(
        "stored %d", 3, extra={"event": "shard_stored", "fields": {"peer": "12D3", "shards": 3, "level": "no"}}
    )
    line = _line(stream)
    assert (line["event"], line["message"], line["level"], line["peer"], line["shards"]) == ("shard_stored", "stored 3", "info", "12D3", 3)
    assert abs(line["at"] - __import__("time").time()) < 60


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("name", ["prompt", "ticket", "api_key", "messages", "token_ids", "hidden_state", "owner_secret", "Text"])
def test_fields_named_like_secrets_are_hidden(stream: io.StringIO, form: str, name: str) -> None:
    configure_logs(form, stream=stream)
    logging.getLogger("node.x").warning("said", extra={"event": "e", "fields": {name: CANARY, "deep": {name: [CANARY]}}})
    assert CANARY not in stream.getvalue()
    assert "redacted" in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "text"])
def test_tickets_are_hidden_wherever_they_stand(stream: io.StringIO, form: str) -> None:
    configure_logs(form, stream=stream)
    ticket = "mft1" + "abcdefgh" * 20
    try:
        raise ValueError(f"bad {ticket}")
    except ValueError:
        logging.getLogger("node.x").exception("failed with %s", ticket, extra={"fields": {"why": f"x {ticket}"}})
    assert "abcdefgh" not in stream.getvalue()
    assert "ValueError" in stream.getvalue()


def test_text_says_nothing_twice_and_shortens_ids(stream: io.StringIO) -> None:
    configure_logs("text", stream=stream)
    model = "mfm1" + "abcdefgh" * 7
    fields = {"peer": "12D3KooWabc", "reason": "no answer", "model": model, "shards": 3}
    logging.getLogger("node.x").info("12D3KooWabc left: no answer", extra={"event": "e", "fields": fields})
    assert stream.getvalue().split("info", 1)[1].strip() == "12D3KooWabc left: no answer  model=mfm1abcde…cdefgh shards=3"


def test_libp2p_prints_nothing_by_itself() -> None:
    """Imported after the logs are set up, as the node does it."""
    script = "from node.logs import configure_logs as c; c('text'); import logging, libp2p; logging.getLogger('libp2p.x').error('noise')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_counts_of_tokens_stay() -> None:
    assert redact("", {"tokens": 5, "token": 7, "key": None, "blob": b"abc"}) == {"tokens": 5, "token": 7, "key": None, "blob": "[3 bytes]"}


def test_libraries_are_quiet_and_ours_speak(stream: io.StringIO) -> None:
    configure_logs("json", stream=stream)
    logging.getLogger("asyncio").info("noise")
    logging.getLogger("libp2p.x").warning("noise")
    logging.getLogger("node.x").info("word")
    assert _line(stream)["message"] == "word"
