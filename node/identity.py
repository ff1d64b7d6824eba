"""The node's name: one Ed25519 key, kept in `identity.key` (PKCS#8 PEM, mode 0600), made once."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.data_dir import write_durably
from protocol.errors import BadInput
from protocol.ids import PeerId
from protocol.signing import peer_of

FILE = "identity.key"


@dataclass(frozen=True)
class Identity:
    """`boot` (16 bytes) is new at each start: two live nodes with one key tell each other apart by it."""

    key: Ed25519PrivateKey = field(repr=False)
    peer_id: PeerId
    boot: bytes

    @property
    def seed(self) -> bytes:
        """The raw 32-byte private key."""
        return self.key.private_bytes_raw()


def load_identity(data_dir: Path) -> Identity:
    """The key of the (locked) data directory, created when there is none. `BadInput`: readable by others, or not a key."""
    path = data_dir / FILE
    try:
        key = _read(path)
    except FileNotFoundError:
        key = Ed25519PrivateKey.generate()
        write_durably(path, _pem(key))
    return Identity(key=key, peer_id=peer_of(key), boot=os.urandom(16))


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _read(path: Path) -> Ed25519PrivateKey:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise BadInput(f"{path} can be read by others (mode {mode:04o})", hint=f"chmod 600 {path}")
            data = file.read(4096)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadInput(f"{path} can't be read: {error.strerror}") from error
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise BadInput(f"{path} holds no private key", hint="restore it, or move it away to get a new identity") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"{path} holds a key of another kind, not Ed25519", hint="move it away to get a new identity")
    return key
