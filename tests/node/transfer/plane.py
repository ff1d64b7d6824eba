"""A data plane to try: an encoding whose shards are real leaves, its keys, grants, and a pinned client."""

from __future__ import annotations

import datetime
import ssl
import time
from dataclasses import dataclass, field
from random import Random

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding as Form
from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from node.store.interface import ShardKey
from protocol import limits
from protocol.encoding import Encoding, Segment, encoding_id, leaf_digests, seal_encoding, shard_root
from protocol.grants import Grant, header_from, seal_grant
from protocol.ids import EncodingId, ModelId, digest, encoding_text
from protocol.signing import peer_of, verify_bytes
from protocol.windows import DOMAIN, SIGNATURE, window_body

MODEL = ModelId(digest(b"a model"))


def certificate() -> tuple[bytes, bytes, bytes]:
    """(key PEM, certificate PEM, SHA-256 of the certificate), self-signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1)).sign(key, SHA256())
    )  # fmt: skip
    pem = key.private_bytes(Form.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem, made.public_bytes(Form.PEM), made.fingerprint(SHA256())


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass
class Coded:
    """An encoding with k = 1 and two shards of the same length (bytes chosen, not coded)."""

    size: int = 20 * limits.LEAF + 1000
    shards: list[bytes] = field(init=False)
    envelope: bytes = field(init=False)

    def __post_init__(self) -> None:
        full = limits.PIECE - 64
        lengths = [full] * (self.size // full) + ([self.size % full] if self.size % full else [])
        segments = [Segment(length, length, bytes(32)) for length in lengths]
        self.shards = [Random(seed).randbytes(self.size) for seed in (1, 2)]
        record = Encoding(
            group=bytes(32), scheme="s1", compression="raw", k=1, n=2, length=self.size, segments=segments,
            roots=[shard_root(self.size, leaf_digests(shard)) for shard in self.shards],
        )  # fmt: skip
        self.envelope = seal_encoding(Ed25519PrivateKey.from_private_bytes(bytes(32)), record)

    @property
    def id(self) -> EncodingId:
        return encoding_id(self.envelope)

    def key(self, shard: int) -> ShardKey:
        return ShardKey(self.id, shard)

    def leaves(self, shard: int) -> bytes:
        return b"".join(leaf_digests(self.shards[shard]))

    def body(self, shard: int) -> bytes:
        return self.leaves(shard) + self.shards[shard]

    def path(self, shard: int) -> str:
        return f"/shard/{encoding_text(self.id)}/{shard}"


def grant(signer: Ed25519PrivateKey, coded: Coded, verb: str = "get", **other: object) -> dict[str, str]:
    """The header of a fresh grant of both shards; `other` replaces its fields."""
    server = peer_of(signer)
    fields = {
        "verb": verb, "client": "12D3KooWclient", "server": server, "encoding": coded.id, "shards": [0, 1],
        "max_bytes": 100 * limits.MIB, "nonce": Random().randbytes(16), "issued": int(time.time()),
    }  # fmt: skip
    return {"MF-Grant": header_from(seal_grant(signer, Grant(**{**fields, **other})))}  # type: ignore[arg-type]


def open_windows(body: bytes, signer: str, encoding: bytes, shard: int, first: int, size: int) -> bytes:
    """The shard bytes of an answer without leaf list, each window's signature checked."""
    plain, at = b"", 0
    window = limits.WINDOW_LEAVES * limits.LEAF
    while size:
        data, at = body[at : at + min(window, size)], at + min(window, size)
        signature, at = body[at : at + SIGNATURE], at + SIGNATURE
        digests = leaf_digests(data)
        assert verify_bytes(signer, DOMAIN, window_body(encoding, shard, first, len(digests), b"".join(digests)), signature)
        plain, size, first = plain + data, size - len(data), first + len(digests)
    assert at == len(body)
    return plain
