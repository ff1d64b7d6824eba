"""What an audit asks and what its answers prove.

The auditor draws a nonce of 32 bytes and names up to 8 shards. The peer walks over scattered leaves of them:

    tag -1 = nonce
    step i reads leaf (first 8 bytes of tag i-1, big-endian) mod (leaves of the shard) of target i mod (number of targets)
    tag i  = BLAKE3, keyed with the nonce, of tag i-1 ‖ the leaf's bytes

and answers with all tags at once, a few hundred bytes. Where step i reads isn't known before step i-1 has been read: who has the bytes
reads on at the speed of its disk, who hasn't waits for the network at every step. Then it shows the leaves of the steps the auditor
chooses, when the tags can't be changed any more. Both answers are signed, so that a wrong one can be shown to anyone.

Rejected: naming the leaves at once (all are then fetched in one round trip, which a slow disk takes too), sending all leaves within
the deadline (it would then measure the peer's line), digests of leaves alone (the leaf list gives them without the bytes).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol import limits
from protocol.encoding import Encoding, leaf_count, shard_root
from protocol.errors import BadInput
from protocol.framing import Record
from protocol.ids import PeerId, digest
from protocol.messages import AuditTarget
from protocol.signing import open_sealed, seal

TAGS_DOMAIN = "mf/audit-tags/1"
LEAVES_DOMAIN = "mf/audit-leaves/1"
NONCE = 32
TAG = 32


class AuditTags(Record):
    """The peer's answer to a walk: `tags` joined, 32 bytes each. `missing` are the numbers of targets it doesn't hold; they are left out
    of the walk, and where none is left there are no tags.
    """

    auditor: str
    nonce: bytes
    targets: list[AuditTarget]
    tags: bytes
    missing: list[int] | None = None


class AuditLeaves(Record):
    """What it then sends: for each target shown, in their order, the root of the leaf list sent; for each step shown the leaf's digest."""

    auditor: str
    nonce: bytes
    shown: list[int]
    roots: bytes
    digests: bytes


class Walk:
    """The rule of the walk over shards of `lengths` bytes (none of them empty)."""

    def __init__(self, nonce: bytes, lengths: Sequence[int], steps: int) -> None:
        self._nonce = nonce
        self._counts = [leaf_count(length) for length in lengths]
        self.steps = steps if lengths else 0

    def place(self, step: int, before: bytes) -> tuple[int, int]:
        """(target, leaf) of a step; `before` is the tag before it, the nonce for step 0."""
        target = step % len(self._counts)
        return target, int.from_bytes(before[:8], "big") % self._counts[target]

    def tag(self, before: bytes, leaf: bytes | memoryview) -> bytes:
        hasher = blake3(before, key=self._nonce)
        hasher.update(leaf)
        return hasher.digest()

    def go(self, read: Callable[[int, int], bytes]) -> bytes:
        """All tags; `read(target, leaf)` gives a leaf's bytes."""
        tags, before = bytearray(), self._nonce
        for step in range(self.steps):
            before = self.tag(before, read(*self.place(step, before)))
            tags += before
        return bytes(tags)

    def before(self, step: int, tags: bytes) -> bytes:
        return tags[(step - 1) * TAG : step * TAG] if step else self._nonce

    def where(self, step: int, tags: bytes) -> tuple[int, int]:
        """(target, leaf) of a step of a walk that gave these tags."""
        return self.place(step, self.before(step, tags))


def shown_targets(walk: Walk, tags: bytes, shown: Sequence[int]) -> list[int]:
    """The targets of the steps shown, in order, each once."""
    return sorted({walk.where(step, tags)[0] for step in shown})


def seal_tags(key: Ed25519PrivateKey, tags: AuditTags) -> bytes:
    return seal(key, TAGS_DOMAIN, tags)


def seal_leaves(key: Ed25519PrivateKey, leaves: AuditLeaves) -> bytes:
    return seal(key, LEAVES_DOMAIN, leaves)


def open_tags(data: bytes) -> tuple[PeerId, AuditTags]:
    """Signer and checked statement from hostile bytes; `BadInput` names the rule broken."""
    signer, tags = open_sealed(data, TAGS_DOMAIN, AuditTags)
    check_targets(tags.nonce, tags.targets, "audit tags")
    missing = tags.missing or []
    if sorted(set(missing)) != missing or not all(0 <= number < len(tags.targets) for number in missing):
        raise BadInput("audit tags: missing lists numbers of targets, rising")
    if len(tags.tags) % TAG or len(tags.tags) > limits.MAX_AUDIT_STEPS * TAG:
        raise BadInput(f"audit tags: tags have 32 bytes, at most {limits.MAX_AUDIT_STEPS} of them")
    if bool(tags.tags) == (len(missing) == len(tags.targets)):
        raise BadInput("audit tags: there are tags exactly where a target is held")
    return signer, tags


def open_leaves(data: bytes) -> tuple[PeerId, AuditLeaves]:
    """Signer and checked statement from hostile bytes; `BadInput` names the rule broken."""
    signer, leaves = open_sealed(data, LEAVES_DOMAIN, AuditLeaves)
    check_shown(leaves.shown, limits.MAX_AUDIT_STEPS)
    if len(leaves.nonce) != NONCE or len(leaves.digests) != 32 * len(leaves.shown):
        raise BadInput("audit leaves: a nonce of 32 bytes and a digest for each step shown")
    if not leaves.roots or len(leaves.roots) % 32 or len(leaves.roots) > 32 * limits.MAX_AUDIT_TARGETS:
        raise BadInput(f"audit leaves: 1 to {limits.MAX_AUDIT_TARGETS} roots of 32 bytes")
    return signer, leaves


def check_targets(nonce: bytes, targets: Sequence[AuditTarget], what: str) -> None:
    if len(nonce) != NONCE:
        raise BadInput(f"{what}: a nonce has {NONCE} bytes")
    if not 1 <= len(targets) <= limits.MAX_AUDIT_TARGETS or len(set(targets)) != len(targets):
        raise BadInput(f"{what}: 1 to {limits.MAX_AUDIT_TARGETS} targets, each once")
    if any(len(target.encoding) != 32 or not 0 <= target.shard < limits.MAX_SHARDS for target in targets):
        raise BadInput(f"{what}: a target is an encoding of 32 bytes and a shard below {limits.MAX_SHARDS}")


def check_shown(shown: Sequence[int], steps: int) -> None:
    """The steps asked to be shown, of a walk of so many."""
    if not 1 <= len(shown) <= limits.MAX_AUDIT_SHOWN or len(set(shown)) != len(shown):
        raise BadInput(f"audit: 1 to {limits.MAX_AUDIT_SHOWN} steps are shown, each once")
    if not all(0 <= step < steps for step in shown):
        raise BadInput(f"audit: a step shown lies beyond the walk of {steps}")


def wrong_leaf(walk: Walk, tags: bytes, step: int, sent: bytes, leaves: bytes) -> str | None:
    """What is wrong with a leaf sent for a step, in words; `leaves` is its shard's true leaf list. None: it is the one committed to."""
    _target, leaf = walk.where(step, tags)
    if digest(sent) != leaves[32 * leaf : 32 * leaf + 32]:
        return f"leaf {leaf} has wrong bytes"
    if walk.tag(walk.before(step, tags), sent) != tags[step * TAG : (step + 1) * TAG]:
        return f"its tag of leaf {leaf} was made from other bytes"
    return None


def proven_fault(
    tags: bytes,
    leaves: bytes,
    encodings: Mapping[bytes, Encoding],
    step: int,
    true_list: bytes | None = None,
    true_leaf: bytes | None = None,
) -> str | None:
    """What two signed answers prove against their signer, to anybody; None: nothing.

    `encodings` has the targets' by their ids. A wrong root is proven by the answers alone, a wrong leaf with
    the shard's true leaf list, a wrong tag with the true leaf too; both are checked here against the root. `BadInput` where the
    two answers don't belong together.
    """
    signer, walked = open_tags(tags)
    other, sent = open_leaves(leaves)
    if (signer, walked.nonce, walked.auditor) != (other, sent.nonce, sent.auditor) or step not in sent.shown:
        raise BadInput("audit evidence: the two answers are of different audits, or the step wasn't shown")
    held = [target for number, target in enumerate(walked.targets) if number not in (walked.missing or [])]
    if any(target.encoding not in encodings for target in held):
        raise BadInput("audit evidence: an encoding it speaks of is missing")
    walk = Walk(walked.nonce, [encodings[target.encoding].shard_length() for target in held], len(walked.tags) // TAG)
    check_shown(sent.shown, walk.steps)
    number, leaf = walk.where(step, walked.tags)
    encoding, shard = encodings[held[number].encoding], held[number].shard
    at = shown_targets(walk, walked.tags, sent.shown).index(number)
    if sent.roots[32 * at : 32 * at + 32] != encoding.roots[shard]:
        return "its leaf list doesn't give the encoding's root"
    if true_list is None or shard_root(encoding.shard_length(), true_list) != encoding.roots[shard]:
        return None
    said = sent.digests[32 * sent.shown.index(step) :][:32]
    if said != true_list[32 * leaf : 32 * leaf + 32]:
        return f"leaf {leaf} has wrong bytes"
    return wrong_leaf(walk, walked.tags, step, true_leaf, true_list) if true_leaf is not None and digest(true_leaf) == said else None
