"""What a stage says it has computed: prints of the rows that went in and came out, signed as they are made.

A stage can't know which of its steps will be run again elsewhere, and can't take back what it signed. 32 bytes a row and side: of a
hidden state 16 keyed sums (fp16, `runtime/fingerprint.py`), of a token its keyed BLAKE3. The key is the session's; who hasn't got it can
compare the prints of two stages and learns no more. A last stage prints what comes out before norm and head (nothing where its layers
aren't known one by one), and the token given after a row: that it made itself, or in an audit that it was given to check, zeros where there
is none. In an audit it has gaps too: for each row by how much that token lies behind the one it would give itself, -1 where none is to be
checked.
"""

from __future__ import annotations

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol import limits
from protocol.errors import BadInput
from protocol.framing import Record
from protocol.ids import PeerId
from protocol.signing import open_sealed, seal

PRINTS_DOMAIN = "mf/prints/1"
PRINT_KEY = 16
PRINT_BYTES = 32
NO_TOKEN = bytes(PRINT_BYTES)


class Prints(Record):
    """Rows [position, position + count) of a session through layers [first, end), by the signer."""

    session: bytes
    model: bytes
    precision: str
    first: int
    end: int
    position: int
    count: int
    inputs: bytes
    outputs: bytes | None = None
    gaps: list[float] | None = None
    given: bytes | None = None


def token_print(key: bytes, position: int, token: int) -> bytes:
    """What stands for a token of a first stage."""
    return blake3(position.to_bytes(8, "big") + token.to_bytes(8, "big", signed=True), key=key.ljust(32, b"\x00")).digest()


def seal_prints(key: Ed25519PrivateKey, prints: Prints) -> bytes:
    return seal(key, PRINTS_DOMAIN, prints)


def open_prints(data: bytes) -> tuple[PeerId, Prints]:
    """Signer and checked statement from hostile bytes; `BadInput` names the rule broken."""
    signer, prints = open_sealed(data, PRINTS_DOMAIN, Prints, limits.MAX_PRINTS)
    if len(prints.session) != 16 or len(prints.model) != 32 or len(prints.precision) > 16:
        raise BadInput("prints: a session of 16 bytes, a model of 32, a precision")
    if not 0 <= prints.first < prints.end <= limits.MAX_LAYERS or not 0 <= prints.position < 1 << 31:
        raise BadInput("prints: layers or position out of range")
    if not 1 <= prints.count <= limits.MAX_PRINT_ROWS:
        raise BadInput(f"prints: 1 to {limits.MAX_PRINT_ROWS} rows")
    sides = [side for side in (prints.inputs, prints.outputs, prints.given) if side is not None]
    if any(len(side) != PRINT_BYTES * prints.count for side in sides) or len(prints.gaps or [0.0] * prints.count) != prints.count:
        raise BadInput("prints: 32 bytes a row and side, a gap a row")
    return signer, prints
