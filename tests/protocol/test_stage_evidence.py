"""Evidence of a stage that computed something else: read back, and refused one past each bound."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import BadInput
from protocol.signing import peer_of, seal
from protocol.stage_evidence import EVIDENCE_DOMAIN, PARTINGS, ROLES, Said, StageEvidence, open_evidence, seal_evidence
from tests.protocol import vector_cases as cases

EVIDENCE = cases.EVIDENCE
PEERS = st.sampled_from([cases.PEER, peer_of(cases.HOLDER)])


@st.composite
def evidences(draw: st.DrawFn) -> StageEvidence:
    said = [
        Said(role=role, peer=draw(PEERS), statements=draw(st.lists(st.binary(max_size=60), max_size=4)))
        for role in ROLES
        if role == "session" or draw(st.booleans())
    ]
    first, rows = draw(st.integers(0, limits.MAX_LAYERS - 1)), draw(st.integers(0, (1 << 31) - 1))
    return StageEvidence(
        at=draw(st.integers(0, (1 << 40) - 1)),
        model=draw(st.binary(min_size=32, max_size=32)),
        precision=draw(st.text(max_size=16)),
        first=first,
        end=draw(st.integers(first + 1, limits.MAX_LAYERS)),
        parting=draw(st.sampled_from(PARTINGS)),
        why=draw(st.text(max_size=256)),
        until=draw(st.integers(0, (1 << 31) - 1)),
        rows=rows,
        apart=draw(st.integers(0, rows)),
        worst=draw(st.floats(0, 1e9)),
        said=said,
        wrong=draw(st.sampled_from([None, *(one.peer for one in said if one.role in ("session", "again"))])),
    )


@given(evidences())
def test_read_back_with_its_keeper(evidence: StageEvidence) -> None:
    assert open_evidence(seal_evidence(cases.KEY, evidence)) == (cases.PEER, evidence)


@given(evidences(), st.data())
def test_no_changed_byte_is_read(evidence: StageEvidence, data: st.DataObject) -> None:
    sealed = bytearray(seal_evidence(cases.KEY, evidence))
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        keeper, read = open_evidence(bytes(sealed))
    except BadInput:
        return
    assert (keeper, read) == (cases.PEER, evidence), "only a byte that says the same twice may change"


@pytest.mark.parametrize(
    "changes",
    [
        {"at": -1},
        {"at": 1 << 40},
        {"model": b"m"},
        {"precision": "p" * 17},
        {"first": 4, "end": 4},
        {"first": -1},
        {"end": limits.MAX_LAYERS + 1},
        {"parting": "mood"},
        {"why": "w" * 257},
        {"until": 1 << 31},
        {"until": -1},
        {"rows": 1 << 31},
        {"rows": 1, "apart": 2},
        {"apart": -1},
        {"worst": float("nan")},
        {"worst": -0.5},
        {"said": []},
        {"said": [*EVIDENCE.said, EVIDENCE.said[0]]},
        {"said": EVIDENCE.said[::-1]},
        {"said": [Said(role="somebody", peer=cases.PEER, statements=[])]},
        {"said": [Said(role="session", peer="12D3", statements=[])], "wrong": None},
        {"said": [Said(role="session", peer=cases.PEER, statements=[bytes(limits.MAX_PRINTS + 1)])]},
        {"wrong": peer_of(cases.HOLDER), "said": EVIDENCE.said[:1]},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_one_past(changes: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        open_evidence(seal_evidence(cases.KEY, msgspec.structs.replace(EVIDENCE, **changes)))


def test_longer_than_evidence_may_be() -> None:
    statements = [bytes(limits.MAX_PRINTS)] * (limits.MAX_EVIDENCE // limits.MAX_PRINTS)
    many = msgspec.structs.replace(EVIDENCE, said=[Said(role="session", peer=cases.PEER, statements=statements)])
    with pytest.raises(BadInput, match="at most"):
        open_evidence(seal(cases.KEY, EVIDENCE_DOMAIN, many))
