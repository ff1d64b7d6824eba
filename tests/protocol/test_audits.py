"""The walk's rule, its signed answers from hostile bytes, and what they prove."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.audits import (
    TAG,
    AuditLeaves,
    AuditTags,
    Walk,
    check_shown,
    open_leaves,
    open_tags,
    proven_fault,
    seal_leaves,
    seal_tags,
    shown_targets,
    wrong_leaf,
)
from protocol.encoding import Encoding, Segment, leaf_digests, shard_root
from protocol.errors import BadInput
from protocol.ids import digest
from protocol.messages import AuditTarget
from protocol.signing import peer_of
from tests.protocol.vector_cases import ID, KEY, PEER

NONCE = bytes(range(32))
SHARDS = [b"".join(bytes([one]) * limits.LEAF for one in range(5)), b"".join(bytes([one + 100]) * limits.LEAF for one in range(3))]
LISTS = [b"".join(leaf_digests(shard)) for shard in SHARDS]
TARGETS = [AuditTarget(ID, 0), AuditTarget(digest(ID), 1)]
STEPS = 8
WALK = Walk(NONCE, [len(shard) for shard in SHARDS], STEPS)
SHOWN = [0, 3, 4]


def leaf(target: int, number: int) -> bytes:
    return SHARDS[target][number * limits.LEAF : (number + 1) * limits.LEAF]


TAGS = WALK.go(leaf)


def encoding_of(target: int) -> Encoding:
    shard = SHARDS[target]
    roots = [bytes(32), bytes(32)]
    roots[target] = shard_root(len(shard), LISTS[target])
    segment = Segment(len(shard) - 64, len(shard), bytes(32))
    return Encoding(group=ID, scheme="s1", compression="raw", k=1, n=2, length=segment.plain, segments=[segment], roots=roots)


ENCODINGS = {target.encoding: encoding_of(number) for number, target in enumerate(TARGETS)}
SAID = AuditTags(auditor="auditor", nonce=NONCE, targets=TARGETS, tags=TAGS)


def sent(**changes: Any) -> AuditLeaves:
    digests = b"".join(digest(leaf(*WALK.where(step, TAGS))) for step in SHOWN)
    roots = b"".join(shard_root(len(SHARDS[target]), LISTS[target]) for target in shown_targets(WALK, TAGS, SHOWN))
    fields = {"auditor": "auditor", "nonce": NONCE, "shown": SHOWN, "roots": roots, "digests": digests}
    return AuditLeaves(**(fields | changes))


def test_each_step_follows_from_the_bytes_of_the_one_before() -> None:
    places = [WALK.where(step, TAGS) for step in range(STEPS)]
    assert [target for target, _leaf in places] == [0, 1] * 4
    assert all(number < (5, 3)[target] for target, number in places)
    first = next(step for step in range(STEPS - 1, 0, -1) if places[step] not in places[:step])
    changed = WALK.go(lambda target, number: leaf(target, number) if (target, number) != places[first] else b"x")
    assert changed[: first * TAG] == TAGS[: first * TAG]
    assert all(changed[at : at + TAG] != TAGS[at : at + TAG] for at in range(first * TAG, STEPS * TAG, TAG))
    assert Walk(bytes(32), [len(shard) for shard in SHARDS], STEPS).go(leaf) != TAGS
    assert Walk(NONCE, [], STEPS).go(leaf) == b""


@given(st.binary(min_size=32, max_size=32), st.lists(st.integers(1, 1 << 30), min_size=1, max_size=8), st.integers(1, 64))
def test_every_place_lies_in_its_shard(nonce: bytes, lengths: list[int], steps: int) -> None:
    seen: list[int] = []

    def read(target: int, number: int) -> bytes:
        assert 0 <= number * limits.LEAF < lengths[target]
        seen.append(target)
        return number.to_bytes(4, "big")

    assert len(Walk(nonce, lengths, steps).go(read)) == TAG * steps == TAG * len(seen)
    assert set(seen) == set(range(min(steps, len(lengths))))


def test_a_leaf_shown_is_held_against_list_and_tag() -> None:
    for step in range(STEPS):
        target, number = WALK.where(step, TAGS)
        assert wrong_leaf(WALK, TAGS, step, leaf(target, number), LISTS[target]) is None
        assert "wrong bytes" in (wrong_leaf(WALK, TAGS, step, bytes(limits.LEAF), bytes(32 * 5)) or "")
    broken = TAGS[:-TAG] + bytes(TAG)
    target, number = WALK.where(STEPS - 1, broken)
    assert "tag" in (wrong_leaf(WALK, broken, STEPS - 1, leaf(target, number), LISTS[target]) or "")


BAD_TAGS: list[dict[str, Any]] = [
    {"nonce": NONCE[:-1]}, {"nonce": NONCE + b"x"}, {"targets": []}, {"targets": [TARGETS[0]] * 2},
    {"targets": [AuditTarget(ID, shard) for shard in range(limits.MAX_AUDIT_TARGETS + 1)]},
    {"targets": [AuditTarget(ID[:-1], 0)]}, {"targets": [AuditTarget(ID, limits.MAX_SHARDS)]}, {"targets": [AuditTarget(ID, -1)]},
    {"missing": [2]}, {"missing": [-1]}, {"missing": [1, 0]}, {"missing": [0, 0]}, {"missing": [0, 1]}, {"tags": b""},
    {"tags": TAGS[:-1]}, {"tags": bytes(TAG * (limits.MAX_AUDIT_STEPS + 1))},
]  # fmt: skip
BAD_LEAVES: list[dict[str, Any]] = [
    {"nonce": b""}, {"shown": []}, {"shown": [1, 1, 2]}, {"shown": [0, 3, -1]}, {"shown": [0, 3, limits.MAX_AUDIT_STEPS]},
    {"shown": list(range(limits.MAX_AUDIT_SHOWN + 1)), "digests": bytes(32 * 17)}, {"digests": bytes(64)}, {"roots": b""},
    {"roots": bytes(33)}, {"roots": bytes(32 * (limits.MAX_AUDIT_TARGETS + 1))},
]  # fmt: skip


@pytest.mark.parametrize("changes", BAD_TAGS)
def test_tags_out_of_bounds_are_refused(changes: dict[str, Any]) -> None:
    assert open_tags(seal_tags(KEY, SAID)) == (PEER, SAID)
    with pytest.raises(BadInput, match="audit tags"):
        open_tags(seal_tags(KEY, msgspec.structs.replace(SAID, **changes)))


@pytest.mark.parametrize("changes", BAD_LEAVES)
def test_leaves_out_of_bounds_are_refused(changes: dict[str, Any]) -> None:
    assert open_leaves(seal_leaves(KEY, sent())) == (PEER, sent())
    with pytest.raises(BadInput, match="audit"):
        open_leaves(seal_leaves(KEY, sent(**changes)))


def test_as_many_as_the_limits_allow_are_taken() -> None:
    targets = [AuditTarget(ID, shard) for shard in range(limits.MAX_AUDIT_TARGETS)]
    most = msgspec.structs.replace(SAID, targets=targets, tags=bytes(TAG * limits.MAX_AUDIT_STEPS), missing=[1, 7])
    assert open_tags(seal_tags(KEY, most))[1] == most
    assert open_tags(seal_tags(KEY, msgspec.structs.replace(SAID, tags=b"", missing=[0, 1])))[1].missing == [0, 1]
    check_shown(list(range(limits.MAX_AUDIT_SHOWN)), limits.MAX_AUDIT_STEPS)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_never_passes(at: int, flip: int) -> None:
    for sealed, opened in ((seal_tags(KEY, SAID), open_tags), (seal_leaves(KEY, sent()), open_leaves)):
        data = bytearray(sealed)
        data[at % len(data)] ^= flip
        with pytest.raises(BadInput):
            opened(bytes(data))


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    for opened in (open_tags, open_leaves):
        with pytest.raises(BadInput):
            opened(data)


def test_one_kind_of_answer_is_never_read_as_the_other() -> None:
    with pytest.raises(BadInput, match="signed for"):
        open_tags(seal_leaves(KEY, sent()))
    with pytest.raises(BadInput, match="signed for"):
        open_leaves(seal_tags(KEY, SAID))


# Evidence.


def proves(step: int = 3, leaves: AuditLeaves | None = None, tags: AuditTags = SAID, **true: bytes) -> str | None:
    return proven_fault(seal_tags(KEY, tags), seal_leaves(KEY, leaves or sent()), ENCODINGS, step, **true)


def test_right_answers_prove_nothing() -> None:
    for step in SHOWN:
        target, number = WALK.where(step, TAGS)
        assert proves(step) is None
        assert proves(step, true_list=LISTS[target], true_leaf=leaf(target, number)) is None


def test_a_wrong_root_is_proven_by_the_answers_alone() -> None:
    assert "root" in (proves(leaves=sent(roots=bytes(64))) or "")


def test_a_wrong_leaf_is_proven_by_the_true_list_and_a_made_up_list_proves_nothing() -> None:
    target, _number = WALK.where(3, TAGS)
    wrong = sent(digests=bytes(96))
    assert "wrong bytes" in (proves(leaves=wrong, true_list=LISTS[target]) or "")
    assert proves(leaves=wrong) is None
    assert proves(leaves=wrong, true_list=bytes(len(LISTS[target]))) is None


def test_a_wrong_tag_is_proven_by_the_true_leaf() -> None:
    tags = msgspec.structs.replace(SAID, tags=TAGS[: 3 * TAG] + bytes(TAG) + TAGS[4 * TAG :])
    target, number = WALK.where(3, TAGS)
    shown = sent(shown=[3], digests=digest(leaf(target, number)), roots=ENCODINGS[TARGETS[target].encoding].roots[target])
    true = {"true_list": LISTS[target], "true_leaf": leaf(target, number)}
    assert "tag" in (proves(leaves=shown, tags=tags, **true) or "")
    assert proves(leaves=shown, tags=tags, true_list=LISTS[target]) is None
    assert proves(leaves=shown, tags=tags, true_list=LISTS[target], true_leaf=b"another") is None


def test_answers_that_do_not_belong_together_are_refused() -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    assert peer_of(other) != PEER
    for leaves in (
        seal_leaves(other, sent()), seal_leaves(KEY, sent(nonce=bytes(32))), seal_leaves(KEY, sent(auditor="x")),
        seal_leaves(KEY, sent(shown=[0, 1, 2])),
    ):  # fmt: skip
        with pytest.raises(BadInput, match="different audits"):
            proven_fault(seal_tags(KEY, SAID), leaves, ENCODINGS, 3)
    with pytest.raises(BadInput, match="missing"):
        proven_fault(seal_tags(KEY, SAID), seal_leaves(KEY, sent()), {}, 3)
    with pytest.raises(BadInput, match="beyond the walk"):
        proven_fault(seal_tags(KEY, SAID), seal_leaves(KEY, sent(shown=[0, 3, STEPS])), ENCODINGS, 3)
