"""Private models: what others keep of one says nothing but how much there is.

A private model has a secret of 32 random bytes. Its manifest is sealed under it into a **cover**: a manifest of rule p1 with the groups'
lengths, ids made up under the secret, and the true manifest as sealed bytes. The model id is the cover's hash, so it is as random as
the secret and names no content; holders check, code, audit and repair by the cover as by any manifest. Its groups' segments are
sealed under the secret and named by keyed hashes (scheme p1): no hash of anything that is known elsewhere travels.

The secret reaches each reader wrapped to his own key (RFC 9180, HPKE in base mode: X25519, HKDF-SHA256, AES-256-GCM). A reader is an
Ed25519 identity, account or node alike; HPKE wants X25519, whose key is the same point in other coordinates (RFC 7748, 4.1). The wraps
stand in a signed record, `Readers`, without names: who doesn't hold one of the keys sees a number of wraps, decoys among them.

Sealing is deterministic (SIV: key and nonce from a keyed hash of what is sealed), since a secret may seal two states of one thing and no
nonce may meet two of them. Rejected: a random id beside the cover's hash (a second name to check everywhere), sealing under the readers'
keys (each change would code the model again), convergent keys (who has the public original could look for it).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from protocol import limits
from protocol.errors import BadInput
from protocol.framing import Record, pack, unpack
from protocol.ids import ModelId, PeerId
from protocol.manifest import RULE_PRIVATE, GroupEntry, Manifest, Summary, parse_manifest
from protocol.records import NAME

SECRET = 32
WRAP = 80
"""Bytes of a wrapped secret: an encapsulated key, the secret, a tag."""

ROLES = ("reader", "editor", "admin", "owner")
"""Each may all that the one before may: see and run; change what is said of it; share it; take it back."""

COVERED = Summary(model_type="private")
_MANIFEST, _GROUP, _SEGMENT, _SAID = b"mf/private-manifest/1", b"mf/private-group/1", b"mf/private-segment/1", b"mf/private-said/1"
_WRAP = b"mf/readers/1"
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_NAME, _TAG = 32, 16
_P = 2**255 - 19


class Inside(Record):
    """What a cover seals: the manifest's own bytes, and whose `Readers` records say who else may read it (a PeerID)."""

    manifest: bytes
    publisher: str


class Reader(msgspec.Struct, array_like=True, frozen=True):
    """`identity`: the Ed25519 public key of an account or a node."""

    identity: bytes
    role: str


class Said(Record):
    """What a `Readers` record seals: the model's name and what is said of it, who may read it, at which nodes it may run."""

    name: str
    version: str
    label: str
    size: int
    parameters: int
    created: int
    summary: Summary
    readers: list[Reader]
    nodes: list[str]
    description: str | None = None
    license: str | None = None
    updated: int | None = None

    def full_name(self) -> str:
        return f"{self.label}/{self.name}@{self.version}"

    def role_of(self, identity: bytes | None) -> str | None:
        """The highest that the identity has."""
        roles = [reader.role for reader in self.readers if reader.identity == identity]
        return max(roles, key=ROLES.index, default=None)


def at_least(role: str | None, needed: str) -> bool:
    return role is not None and ROLES.index(role) >= ROLES.index(needed)


def _key(secret: bytes, purpose: bytes) -> bytes:
    if len(secret) != SECRET:
        raise BadInput(f"a private model's secret has {SECRET} bytes, not {len(secret)}")
    return blake3(purpose, key=secret).digest()


def _sealed_under(key: bytes, name: bytes) -> tuple[AESGCM, bytes]:
    both = blake3(b"mf/sealed/1" + name, key=key).digest(length=44)
    return AESGCM(both[:32]), both[32:]


def _seal(secret: bytes, purpose: bytes, data: bytes) -> bytes:
    key = _key(secret, purpose)
    name = blake3(data, key=key).digest()
    cipher, nonce = _sealed_under(key, name)
    return name + cipher.encrypt(nonce, data, None)


def _open(secret: bytes, purpose: bytes, sealed: bytes, what: str) -> bytes:
    key = _key(secret, purpose)
    if len(sealed) < _NAME + _TAG:
        raise BadInput(f"{what}: too short to be sealed")
    cipher, nonce = _sealed_under(key, sealed[:_NAME])
    try:
        return cipher.decrypt(nonce, sealed[_NAME:], None)
    except InvalidTag:
        raise BadInput(f"{what}: doesn't open under this secret") from None


def group_id(secret: bytes, number: int, inner: bytes) -> bytes:
    """The id that group `number` has in the cover; equal groups have different ones."""
    return blake3(number.to_bytes(4, "big") + inner, key=_key(secret, _GROUP)).digest()


def segment_key(secret: bytes) -> bytes:
    """What the names of this model's segments are hashed under (erasure/cipher.py)."""
    return _key(secret, _SEGMENT)


def cover_of(secret: bytes, data: bytes, publisher: PeerId) -> Manifest:
    """The cover of a manifest given as its bytes; the same again for the same secret."""
    inner = parse_manifest(data)
    groups = [
        GroupEntry(name=f"group.{number}", id=group_id(secret, number, group.id), length=group.length)
        for number, group in enumerate(inner.groups)
    ]
    sealed = _seal(secret, _MANIFEST, pack(Inside(manifest=data, publisher=publisher)))
    return Manifest(rule=RULE_PRIVATE, files=[], tensors=[], groups=groups, summary=COVERED, parameters=0, sealed=sealed)


def open_cover(secret: bytes, cover: Manifest) -> tuple[Manifest, PeerId]:
    """The true manifest, checked like any, and its publisher; `BadInput` where it doesn't open or isn't what the cover says."""
    if cover.rule != RULE_PRIVATE or cover.sealed is None:
        raise BadInput("manifest: not that of a private model")
    inside = unpack(_open(secret, _MANIFEST, cover.sealed, "manifest"), Inside, "private manifest", limits.MAX_BLOB)
    inner = parse_manifest(inside.manifest)
    if inner.rule == RULE_PRIVATE:
        raise BadInput("manifest: a cover covers no cover")
    told = [(group.id, group.length) for group in cover.groups]
    if told != [(group_id(secret, number, group.id), group.length) for number, group in enumerate(inner.groups)]:
        raise BadInput("manifest: its groups aren't those that its cover tells")
    return inner, PeerId(inside.publisher)


def seal_said(secret: bytes, said: Said) -> bytes:
    check_said(said)
    return _seal(secret, _SAID, pack(said))


def open_said(secret: bytes, sealed: bytes) -> Said:
    said = unpack(_open(secret, _SAID, sealed, "Readers"), Said, "Readers", limits.MAX_READERS_RECORD)
    check_said(said)
    return said


def check_said(said: Said) -> None:
    for field in (said.label, said.name, said.version):
        if not NAME.match(field):
            raise BadInput(f"Readers: {field[:96]!r} isn't a name (letters, digits, . _ -; at most 96)")
    if not 0 < len(said.readers) <= limits.MAX_READERS or len(said.nodes) > limits.MAX_READERS:
        raise BadInput(f"Readers: 1 to {limits.MAX_READERS} readers, {len(said.readers)} given", hint="share it with a team's node instead")
    if any(len(reader.identity) != 32 or reader.role not in ROLES for reader in said.readers):
        raise BadInput(f"Readers: a reader is a key of 32 bytes with a role of {', '.join(ROLES)}")
    if not (0 <= said.size < 1 << 63 and 0 <= said.parameters < 1 << 63):
        raise BadInput("Readers: a size is out of range")
    if not (0 <= said.created <= limits.LATEST and 0 <= (said.updated or 0) <= limits.LATEST):
        raise BadInput("Readers: a time is out of range")


def exchange_key(identity: bytes) -> X25519PublicKey:
    """The X25519 key of an Ed25519 public key: u = (1 + y) / (1 - y) (RFC 7748, 4.1)."""
    y = int.from_bytes(identity, "little") & ((1 << 255) - 1)
    if len(identity) != 32 or y >= _P or y in (0, 1, _P - 1):
        raise BadInput("not an Ed25519 key that anything can be sealed to")
    return X25519PublicKey.from_public_bytes(((1 + y) * pow(1 - y, -1, _P) % _P).to_bytes(32, "little"))


def exchange_seed(seed: bytes) -> X25519PrivateKey:
    """The X25519 key of an Ed25519 seed: the scalar that signs with it (RFC 8032, 5.1.5)."""
    return X25519PrivateKey.from_private_bytes(hashlib.sha512(seed).digest()[:32])


def _info(model: ModelId, publisher: PeerId) -> bytes:
    return b"\x00".join([_WRAP, model, publisher.encode()])


def wrap(secret: bytes, identity: bytes, model: ModelId, publisher: PeerId) -> bytes:
    """The secret for one reader, good for this model and this publisher's record alone. Random: each time other bytes."""
    return _SUITE.encrypt(secret, exchange_key(identity), info=_info(model, publisher))


def unwrap(wraps: Sequence[bytes], key: X25519PrivateKey, model: ModelId, publisher: PeerId) -> bytes | None:
    """The secret, where one of the wraps is for this key: about 80 µs for each."""
    for wrapped in wraps:
        try:
            found = _SUITE.decrypt(wrapped, key, info=_info(model, publisher))
        except (InvalidTag, ValueError):
            continue
        if len(found) == SECRET:
            return found
    return None


def decoys(count: int, random: bytes) -> list[bytes]:
    """Bytes like wraps that nobody opens, so that the number of readers is only told in eights. `random`: `WRAP` bytes for each to make."""
    wanted = -count % 8
    if len(random) < wanted * WRAP:
        raise BadInput("decoys want more random bytes")
    cut = [bytearray(random[at : at + WRAP]) for at in range(0, wanted * WRAP, WRAP)]
    for one in cut:
        one[31] &= 0x7F
    return [bytes(one) for one in cut]
