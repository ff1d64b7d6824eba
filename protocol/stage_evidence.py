"""What is kept of two runs of the same rows that parted: who said what, signed, and what this node made of it.

The statements are those of `protocol/prints.py` as their makers signed them; the record around them is sealed by the node that kept them,
so that a changed word is found too. Prints, not rows: without the session's key, which is thrown away, two of them can be compared and
nothing can be guessed from one. Neither tokens nor hidden states, prompt nor reply are in it, and no account.

What it shows (`runtime/stage_evidence.py`): these nodes signed these prints of the same layers, and by them two agree and one doesn't. What
it can't show to who doesn't believe the node that kept it: that it gave all of them the same rows (16 sums may agree where the rows
don't) and asked all for the same sampling.
"""

from __future__ import annotations

import math

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol import limits
from protocol.errors import BadInput
from protocol.framing import Record
from protocol.ids import PeerId, public_from_peer
from protocol.signing import open_sealed, seal

EVIDENCE_DOMAIN = "mf/stage-evidence/1"
ROLES = ("before", "session", "again", "third")
"""Whose statements: the stage before the one in question, the stage itself, who ran it again, who decided."""
PARTINGS = ("handover", "outputs", "tokens")
_WHY = 256


class Said(Record):
    """The statements of one node about one stage, in one run: envelopes of `mf/prints/1`."""

    role: str
    peer: str
    statements: list[bytes]


class StageEvidence(Record):
    """Layers [first, end) of a model at a precision. `wrong`: who stood alone; None: nobody is blamed, and `why` says so.

    `at`: Unix seconds. `rows` were compared, `apart` of them differ, the `worst` by so much (relative; of tokens: logits). Statements count
    as far as they are about rows before `until`: of later ones this node doesn't know what went in.
    """

    at: int
    model: bytes
    precision: str
    first: int
    end: int
    parting: str
    why: str
    until: int
    rows: int
    apart: int
    worst: float
    said: list[Said]
    wrong: str | None = None


def seal_evidence(key: Ed25519PrivateKey, evidence: StageEvidence) -> bytes:
    return seal(key, EVIDENCE_DOMAIN, evidence)


def open_evidence(data: bytes) -> tuple[PeerId, StageEvidence]:
    """Who kept it, and the checked record, from hostile bytes; `BadInput` names the rule broken. The statements aren't opened."""
    keeper, evidence = open_sealed(data, EVIDENCE_DOMAIN, StageEvidence, limits.MAX_EVIDENCE)
    _check_finding(evidence)
    _check_said(evidence)
    return keeper, evidence


def _check_finding(evidence: StageEvidence) -> None:
    if len(evidence.model) != 32 or len(evidence.precision) > 16 or not 0 <= evidence.first < evidence.end <= limits.MAX_LAYERS:
        raise BadInput("evidence: a model of 32 bytes, a precision, layers in range")
    if not 0 <= evidence.at < 1 << 40 or not 0 <= evidence.apart <= evidence.rows < 1 << 31 or not 0 <= evidence.until < 1 << 31:
        raise BadInput("evidence: a time, a row, and of so many rows so many")
    if evidence.parting not in PARTINGS or len(evidence.why) > _WHY or math.isnan(evidence.worst) or evidence.worst < 0:
        raise BadInput(f"evidence: what parted is one of {', '.join(PARTINGS)}, said in at most {_WHY} characters")


def _check_said(evidence: StageEvidence) -> None:
    roles = [said.role for said in evidence.said]
    if not roles or any(role not in ROLES for role in roles) or sorted(set(roles), key=ROLES.index) != roles:
        raise BadInput(f"evidence: statements are those of {', '.join(ROLES)}, each once and in this order")
    for said in evidence.said:
        public_from_peer(said.peer)
        if any(len(statement) > limits.MAX_PRINTS for statement in said.statements):
            raise BadInput(f"evidence: a statement has at most {limits.MAX_PRINTS} bytes")
    if evidence.wrong is not None and evidence.wrong not in [said.peer for said in evidence.said if said.role in ("session", "again")]:
        raise BadInput("evidence: who is blamed said nothing of these layers")
