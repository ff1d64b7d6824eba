"""One tree of errors for every surface: HTTP status, stable code and exit code sit on the class.

An error crosses processes (owner's socket, transfer channel, libp2p stream) as a small map and is
rebuilt under the same class on the other side, so that the person at the end reads the sentence
written by the code that saw the fault.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MfError(Exception):
    """Base of every error meant for a person. `message` says what happened and where, `hint` what to do."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details or {}

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def to_wire(self) -> dict[str, Any]:
        """The error as a map of plain values: code, message, hint, details."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "details": self.details}


class BadInput(MfError):
    """What the caller gave can't be used: a path, a model's files, an option, a body."""

    code, status, exit_code = "bad_request", 400, 2


class Unauthorized(MfError):
    code, status, exit_code = "unauthorized", 401, 5


class Forbidden(MfError):
    code, status, exit_code = "forbidden", 403, 5


class NotFound(MfError):
    """Unknown model, path or name; `details["candidates"]` lists near names."""

    code, status, exit_code = "not_found", 404, 3


class Conflict(MfError):
    """Something else is in the way: a data directory in use, a port taken, a newer format."""

    code, status, exit_code = "conflict", 409, 4


class TooLarge(MfError):
    code, status, exit_code = "too_large", 413, 2


class Misdirected(MfError):
    code, status, exit_code = "misdirected", 421, 5


class Busy(MfError):
    code, status, exit_code = "busy", 429, 6


class Cancelled(MfError):
    """The asker left or pressed Ctrl-C."""

    code, status, exit_code = "cancelled", 499, 130


class Unavailable(MfError):
    """The swarm can't do it now: too few shards, no route, no peer in time. Says which, and who was asked."""

    code, status, exit_code = "unavailable", 503, 6


class DeadlineExceeded(Unavailable):
    """A wait on another machine ended at its deadline; names the machine and the wait."""

    code = "deadline_exceeded"


class PeerFault(Unavailable):
    """A peer broke a rule; names the peer, the field and the rule."""

    code = "peer_fault"


class StorageFull(MfError):
    code, status, exit_code = "storage_full", 507, 7


class NotRunning(MfError):
    """No node is running on that data directory."""

    code, status, exit_code = "not_running", 503, 8


def _tree(root: type[MfError]) -> list[type[MfError]]:
    return [root] + [leaf for child in root.__subclasses__() for leaf in _tree(child)]


def error_from_wire(wire: dict[str, Any]) -> MfError:
    """Rebuilds an error under its own class; an unknown code becomes a plain `MfError`."""
    # A class that only inherits its code (and may be built otherwise) is its parent on the wire.
    by_code = {cls.code: cls for cls in _tree(MfError) if "code" in vars(cls)}
    cls = by_code.get(str(wire.get("code")), MfError)
    details = wire.get("details")
    hint = wire.get("hint")
    return cls(
        str(wire.get("message", "unknown error"))[:4096],
        hint=str(hint)[:1024] if hint else None,
        details=details if isinstance(details, dict) else None,
    )
