"""What audits of stages found, for the owner: the evidence kept, page by page, and how much was looked at."""

from __future__ import annotations

from typing import Any

from node.audit_tally import AuditTally
from node.evidence_store import EvidenceStore, Kept
from protocol.ids import ModelId, model_text

MOST = 200
"""Findings on a page."""


class StageAuditReport:
    def __init__(self, store: EvidenceStore, tally: AuditTally) -> None:
        self._store, self._tally = store, tally

    async def page(self, most: int, below: int | None = None, *, verify: bool = False) -> dict[str, Any]:
        """{"findings", "damaged", "next", "counts"}: the newest first, `next` what to give as `below` for more, None: that was all. With
        `verify` every statement's signature is checked and the verdict drawn again; else `holds` is None."""
        page = await self._store.read(max(1, min(most, MOST)), below, verify=verify)
        return {
            "findings": [_finding(kept, verify) for kept in page.kept],
            "damaged": [{"number": one.number, "fault": one.fault} for one in page.damaged],
            "next": page.below,
            "counts": self._tally.told(),
        }


def _finding(kept: Kept, verified: bool) -> dict[str, Any]:
    evidence = kept.evidence
    return {
        "number": kept.number,
        "at": evidence.at,
        "model_id": model_text(ModelId(evidence.model)),
        "precision": evidence.precision,
        "first": evidence.first,
        "end": evidence.end,
        "parting": evidence.parting,
        "why": evidence.why,
        "wrong": evidence.wrong,
        "rows": evidence.rows,
        "apart": evidence.apart,
        "worst": round(evidence.worst, 6),
        "said": [{"role": said.role, "peer_id": said.peer, "statements": len(said.statements)} for said in evidence.said],
        "holds": kept.fault is None if verified else None,
        "fault": kept.fault,
    }
