"""What a node must still know of its swarm after a restart. One small file, 0600: it holds the swarm's secret.

The secret is the node's own from its first start; joining adds the ticket's. Cards are kept here because a name must outlive
its publisher even when every node restarts; NodeRecords and Holdings are made anew.
"""

from __future__ import annotations

import os
from pathlib import Path

from node.swarm.history import Known
from protocol import limits
from protocol.errors import BadInput, Conflict
from protocol.framing import Record, pack, unpack
from protocol.ticket import TicketPeer

MAX_STATE = 8 * limits.MIB
MAX_SAVED_PEERS = 64
MAX_SAVED_CARDS = 512
MAX_MEMBERS = 1_024


class SwarmState(Record):
    """`trusts`: the owner's allow-list; `vouched`: trusted because a ticket's issuer does; `members`: proved a secret we hold.

    All PeerIDs as text; `cards` are envelopes; `began` and `known` as in node/swarm/history.py.
    """

    secret: bytes
    adopted: list[bytes]
    trusts: list[str]
    vouched: list[str]
    members: list[str]
    peers: list[TicketPeer]
    cards: list[bytes]
    began: float | None = None
    known: list[Known] | None = None

    def secrets(self) -> list[bytes]:
        return list(dict.fromkeys([self.secret, *self.adopted]))


def fresh_state(secret: bytes) -> SwarmState:
    """A node that has met nobody yet, with its own 32 random bytes."""
    if len(secret) != 32:
        raise BadInput(f"a swarm secret has 32 bytes, not {len(secret)}")
    return SwarmState(secret=secret, adopted=[], trusts=[], vouched=[], members=[], peers=[], cards=[])


class StateFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> SwarmState | None:
        """None where there is none yet; `Conflict` for a file that can't be read."""
        try:
            state = unpack(self._path.read_bytes(), SwarmState, str(self._path), MAX_STATE)
        except FileNotFoundError:
            return None
        except (OSError, BadInput) as error:
            raise Conflict(f"{self._path} can't be read: {error}", hint="move it away: the node then begins a swarm of its own") from error
        if len(state.secret) != 32 or any(len(secret) != 32 for secret in state.adopted):
            raise Conflict(f"{self._path}: a swarm secret has 32 bytes", hint="move it away: the node then begins a swarm of its own")
        return state

    def save(self, state: SwarmState) -> None:
        """Durable when it returns."""
        partial = self._path.with_name(self._path.name + ".partial")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(pack(state))
            out.flush()
            os.fdatasync(out.fileno())
        os.replace(partial, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
