"""Logs for people or programs, on standard error, that no secret can slip into by its name.

Code writes `log.info("sentence", extra={"event": "shard_stored", "fields": {"peer": ...}})`. As JSON a line is
{"at", "level", "event", "message", ...fields}; as text the time, the level, the sentence and the fields.
A field whose name says that it holds a prompt, a ticket or a key is replaced before it is formatted. That is
the last guard, not the rule: the rule is that nobody passes one.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any, TextIO

_SECRET = re.compile(
    r"(?:^|_)(?:prompt|prompts|reply|completion|messages|text|content|ticket|tickets|token|token_ids|tokens_text|secret|secrets"
    r"|key|private_key|signing_key|password|authorization|email|hidden|hidden_state|logits|api_key|grant)$"
)
_TICKET = re.compile(r"mft1[a-z2-7]{8,}|mf_(?:live|tok|ref)_[A-Za-z0-9_-]{8,}")
_ID = re.compile(r"\bmf[me]1[a-z2-7]{40,}|\b[0-9a-f]{64}\b")
_HIDDEN = "[redacted]"
_OWN = ("at", "level", "event", "message")


def redact(name: str, value: Any) -> Any:
    """The value as a log may show it: hidden by name, tickets hidden wherever they stand."""
    if _SECRET.search(name.lower()) and not isinstance(value, bool | int | float | None):
        return _HIDDEN
    if isinstance(value, str):
        return _TICKET.sub(_HIDDEN, value)
    if isinstance(value, dict):
        return {str(key): redact(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(name, item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes]"
    return value if isinstance(value, bool | int | float | None) else _TICKET.sub(_HIDDEN, str(value))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    if not isinstance(fields, dict):
        return {}
    return {key: value for key, value in redact("", fields).items() if key not in _OWN}


def _fault(record: logging.LogRecord) -> str | None:
    if not record.exc_info or record.exc_info[0] is None:
        return None
    return _TICKET.sub(_HIDDEN, logging.Formatter().formatException(record.exc_info))


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", None),
            "message": _TICKET.sub(_HIDDEN, record.getMessage()),
        }
        line |= _fields(record)
        fault = _fault(record)
        if fault:
            line["exception"] = fault
        line.setdefault("logger", record.name)
        return json.dumps(line, ensure_ascii=False, default=str)


def _said(value: Any, message: str) -> bool:
    """Whether the sentence holds the field already."""
    return isinstance(value, str) and len(value) > 3 and value in message


def _shortened(line: str) -> str:
    """Ids of models, encodings and blobs as long as needed to tell them apart; whole ones are in the JSON form."""
    return _ID.sub(lambda found: f"{found[0][:9]}…{found[0][-6:]}", line)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        message = _TICKET.sub(_HIDDEN, record.getMessage())
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items() if not _said(value, message))
        line = _shortened(f"{at} {record.levelname.lower():<7} {message}" + (f"  {fields}" if fields else ""))
        fault = _fault(record)
        return f"{line}\n{fault}" if fault else line


def configure_logs(form: str, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Replaces the root handlers by one on standard error: `form` is text or json. Libraries speak from warning on."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for own in ("node", "protocol", "erasure", "runtime", "bootstrap"):
        logging.getLogger(own).setLevel(level)
    for loud in ("libp2p", "trio", "multiaddr"):
        logging.getLogger(loud).setLevel(logging.ERROR)
    # libp2p, when imported, cuts itself off from the root and clears its handlers. Python would then print each dial that failed
    # through this one, in no form of ours; whoever dialled says it better.
    logging.lastResort = logging.NullHandler()
