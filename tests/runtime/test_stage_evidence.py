"""Evidence is read again by its statements alone: it shows what it says, and every changed word or missing side is told."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.prints import PRINT_BYTES, Prints, open_prints, seal_prints
from protocol.signing import peer_of
from protocol.stage_evidence import Said, StageEvidence, open_evidence, seal_evidence
from runtime.fingerprint import PRINT
from runtime.stage_evidence import fault_of, with_statements

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(1, 6)]
PEERS = [peer_of(key) for key in KEYS]
MODEL = bytes(range(32))
ROWS = 60


def printed(seed: int, witness: int, rows: int = ROWS) -> bytes:
    base = np.random.default_rng(seed).standard_normal((rows, PRINT))
    return (base + 0.01 * np.random.default_rng(1_000 * seed + witness).standard_normal((rows, PRINT))).astype("<f2").tobytes()


def statements(
    who: int, out: int, rows: int = ROWS, size: int = 20, into: int = 7, gap: float | None = None, tokens: int | None = None, **changes: Any
) -> list[bytes]:
    """`rows` of layers [2, 4): seed `into` goes in and `out` comes out, each with the machine's noise."""
    inputs, outputs = printed(into, who, rows), printed(out, who, rows)
    made = []
    for at in range(0, rows, size):
        count, part = min(size, rows - at), slice(at * PRINT_BYTES, (at + size) * PRINT_BYTES)
        fields = {"session": bytes([who]) * 16, "model": MODEL, "precision": "bf16", "first": 2, "end": 4} | changes
        gaps = None if gap is None else [gap] * count
        given = None if tokens is None else bytes([tokens]) * PRINT_BYTES * count
        said = Prints(position=at, count=count, inputs=inputs[part], outputs=outputs[part], gaps=gaps, given=given, **fields)
        made.append(seal_prints(KEYS[who], said))
    return made


BARE = StageEvidence(
    at=1_800_000_000, model=MODEL, precision="bf16", first=2, end=4, parting="outputs", why="others came out", until=1 << 20,
    rows=ROWS, apart=ROWS, worst=1.4, said=[],
)  # fmt: skip


def made_of(said: dict[str, tuple[str, list[bytes]]], wrong: str | None = PEERS[0], **changes: Any) -> StageEvidence:
    return with_statements(msgspec.structs.replace(BARE, wrong=wrong, **changes), said)


def convicted(rows: int = ROWS, size: int = 20) -> StageEvidence:
    """The first computed something else than the second and the third."""
    said = {
        role: (PEERS[who], statements(who, out, rows, size)) for role, who, out in (("session", 0, 8), ("again", 1, 9), ("third", 2, 9))
    }
    return made_of(said)


def test_it_shows_what_it_says_and_survives_its_bytes() -> None:
    made = convicted()
    assert fault_of(made) is None
    keeper, read = open_evidence(seal_evidence(KEYS[4], made))
    assert (keeper, read, fault_of(read)) == (PEERS[4], made, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wrong": PEERS[1]}, "leave another one alone"),
        ({"wrong": None}, "leave another one alone"),
        ({"model": bytes(32)}, "another node's, or of another model"),
        ({"precision": "fp32"}, "of another model or precision"),
        ({"first": 1}, "other layers"),
        ({"end": 5}, "other layers"),
        ({"parting": "tokens"}, "didn't sign which tokens"),
        ({"parting": "handover"}, "what came out of the stage before"),
    ],
    ids=str,
)
def test_a_changed_word_is_told(changes: dict[str, Any], said: str) -> None:
    assert said in (fault_of(msgspec.structs.replace(convicted(), **changes)) or "")


def test_so_is_a_side_that_is_missing_or_somebody_elses() -> None:
    made = convicted()
    session, again, third = made.said
    assert "no third" in (fault_of(msgspec.structs.replace(made, said=[session, again])) or "")
    assert "one of the two runs" in (fault_of(msgspec.structs.replace(made, said=[session, third])) or "")
    other = Said(role="again", peer=again.peer, statements=third.statements)
    assert "another node's" in (fault_of(msgspec.structs.replace(made, said=[session, other, third])) or "")
    same = Said(role="third", peer=again.peer, statements=again.statements)
    assert "two sides" in (fault_of(msgspec.structs.replace(made, said=[session, again, same])) or "")
    mixed = Said(role="again", peer=again.peer, statements=[*again.statements, *statements(1, 9, session=bytes(16))])
    assert "two sessions" in (fault_of(msgspec.structs.replace(made, said=[session, mixed, third])) or "")


def test_other_rows_that_went_in_show_nothing() -> None:
    said = {"session": (PEERS[0], statements(0, 8, into=6)), "again": (PEERS[1], statements(1, 9))}
    made = made_of(said, None)
    assert "other rows went in" in (fault_of(made) or "")


def test_tokens_are_held_against_the_first_by_two_who_checked_what_it_signed() -> None:
    said = {"session": (PEERS[0], statements(0, 9, tokens=5))}
    said |= {role: (PEERS[who], statements(who, 9, gap=3.5, tokens=5)) for role, who in (("again", 1), ("third", 2))}
    assert fault_of(made_of(said, PEERS[0], parting="tokens")) is None
    agreeing = {**said, "third": (PEERS[2], statements(2, 9, gap=0.1, tokens=5))}
    assert fault_of(made_of(agreeing, PEERS[1], parting="tokens")) is None
    assert fault_of(made_of(agreeing, PEERS[0], parting="tokens")) is not None
    near = {**said, "again": (PEERS[1], statements(1, 9, gap=0.5, tokens=5))}
    assert "aren't far behind" in (fault_of(made_of(near, PEERS[0], parting="tokens")) or "")
    part = {**said, "session": (PEERS[0], [*statements(0, 9, tokens=5)[:2], *statements(0, 9)[2:]])}
    assert fault_of(made_of(part, PEERS[0], parting="tokens")) is None
    unsigned = {**said, "session": (PEERS[0], statements(0, 9))}
    assert "didn't sign" in (fault_of(made_of(unsigned, PEERS[0], parting="tokens")) or "")
    for role, who in (("again", 1), ("third", 2)):
        other = {**said, role: (PEERS[who], statements(who, 9, gap=3.5, tokens=6))}
        assert f"{role} checked other tokens" in (fault_of(made_of(other, PEERS[0], parting="tokens")) or "")


def test_a_hand_over_blames_nobody() -> None:
    said = {"before": (PEERS[3], statements(3, 5, first=0, end=2)), "session": (PEERS[0], statements(0, 9))}
    assert fault_of(made_of(said, None, parting="handover")) is None
    assert "blames nobody" in (fault_of(made_of(said, PEERS[0], parting="handover")) or "")


def test_rows_that_werent_settled_dont_count() -> None:
    later = seal_prints(KEYS[0], msgspec.structs.replace(open_prints(statements(0, 8, into=3)[0])[1], position=ROWS))
    said = {
        "session": (PEERS[0], [*statements(0, 8), later]),
        "again": (PEERS[1], statements(1, 9, 80)),
        "third": (PEERS[2], statements(2, 9)),
    }
    assert fault_of(made_of(said, until=ROWS)) is None
    assert "other rows went in" in (fault_of(made_of(said)) or "")


def test_rows_said_again_are_kept_once() -> None:
    twice = [*statements(0, 5), *statements(0, 8)]
    said = {"session": (PEERS[0], twice), "again": (PEERS[1], statements(1, 9)), "third": (PEERS[2], statements(2, 9))}
    made = made_of(said, PEERS[0])
    assert made.said[0].statements == twice[3:]
    assert fault_of(made) is None


def test_more_than_may_be_kept_is_cut_to_what_shows_the_same() -> None:
    made = convicted(2_048, 1)
    assert len(seal_evidence(KEYS[4], made)) <= limits.MAX_EVIDENCE
    kept = [open_prints(statement)[1].position for statement in made.said[0].statements]
    assert kept == list(range(len(kept)))
    assert 500 < len(kept) < 2_048
    assert fault_of(made) is None


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 80), st.integers(1, 30), st.integers(0, 2))
def test_what_the_third_leaves_alone_is_what_it_shows(rows: int, size: int, liar: int) -> None:
    outs = [9, 9, 9]
    outs[liar] = 8
    said = {role: (PEERS[who], statements(who, outs[who], rows, size)) for who, role in enumerate(("session", "again", "third"))}
    for wrong in (None, PEERS[0], PEERS[1]):
        made = made_of(said, wrong)
        right = rows >= 16 and liar != 2 and wrong == PEERS[liar]
        assert (fault_of(made) is None) == right
