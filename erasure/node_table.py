"""The candidates of one view as columns: one row per node, so that numpy can weigh 10,000 of them at once.

Rows of nodes that left are kept for those that join, with no worth meanwhile. Domains and regions are numbered as they come.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from erasure.candidates import Candidate, Weights, merged_domains
from erasure.rendezvous import Floats, mix, uniform, word

Flags = npt.NDArray[np.bool_]

CROWDED = 1.1
"""A node that holds this many times its share stands back."""


class NodeTable:
    """`rows` by peer; `worth`, `used`, `new`, `relayed`, `domains` and `regions` by row. `used` is in the unit of what is lent, not a
    number where it isn't known; `regions` is 0 for nodes without a label."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.rows: dict[str, int] = {}
        self._free: list[int] = []
        self._nodes: list[Candidate | None] = []
        self.keys = np.zeros(0, np.uint64)
        self.worth = np.zeros(0, np.float64)
        self.used = np.zeros(0, np.float64)
        self.new = np.zeros(0, np.bool_)
        self.relayed = np.zeros(0, np.bool_)
        self.domains = np.zeros(0, np.int64)
        self.regions = np.zeros(0, np.int64)
        self._domain_ids: dict[str, int] = {}
        self.region_ids: dict[str, int] = {"": 0}
        self._region_worth: dict[str, float] | None = None
        self._crowded: Flags | None = None
        self._alias: dict[str, str] = {}
        """Domains whose name operators' labels have changed."""
        self._merged = True

    def join(self, candidate: Candidate) -> None:
        """A new candidate, or what is known of one now."""
        row = self.rows.get(candidate.peer)
        before = None if row is None else self._nodes[row]
        if row is None:
            row = self.rows[candidate.peer] = self._row()
            self.keys[row] = word(b"mf/place/node/1", candidate.peer.encode())
        self._nodes[row] = candidate
        self.worth[row] = self._weights.worth(candidate)
        self.used[row] = np.nan if candidate.room is None else candidate.weight * (1 - candidate.room)
        self.new[row], self.relayed[row] = candidate.new, candidate.relayed
        self.regions[row] = self.region_ids.setdefault(candidate.region or "", len(self.region_ids))
        domain = self._alias.get(candidate.domain, f"domain {candidate.domain}")
        self.domains[row] = self._domain_ids.setdefault(domain, len(self._domain_ids))
        self._region_worth = self._crowded = None
        if candidate.operator or (before is not None and before.operator):
            self._merged = False

    def leave(self, peer: str) -> None:
        """Nothing where it isn't one."""
        row = self.rows.pop(peer, None)
        if row is None:
            return
        gone, self._nodes[row] = self._nodes[row], None
        self.worth[row] = 0.0
        self._region_worth = self._crowded = None
        self._free.append(row)
        if gone is not None and gone.operator:
            self._merged = False

    def node(self, row: int) -> Candidate | None:
        """As it joined last; None for a row that is free."""
        return self._nodes[row]

    def of(self, peers: Iterable[str]) -> list[int]:
        """The rows of those that are candidates."""
        return [self.rows[peer] for peer in peers if peer in self.rows]

    def domain_count(self) -> int:
        """Domains are numbered below this, 1 at least."""
        return len(self._domain_ids) or 1

    def merge(self) -> None:
        """Domains anew after a node with an operator's label came or went: then labels merge others, or don't any more."""
        if self._merged:
            return
        present = [candidate for candidate in self._nodes if candidate is not None]
        merged = merged_domains(present)
        self._alias = {candidate.domain: merged[candidate.peer] for candidate in present}
        for peer, domain in merged.items():
            self.domains[self.rows[peer]] = self._domain_ids.setdefault(domain, len(self._domain_ids))
        self._merged = True

    def scores(self, group_id: bytes, salt: bytes) -> Floats:
        """Weighted rendezvous (Schindelhauer and Schomaker 2005): worth / -ln(draw). One per row, 0 for rows that can't be chosen."""
        rows = len(self._nodes)
        return -self.worth[:rows] / np.log(uniform(mix(self.keys[:rows] ^ word(b"mf/place/group/1", salt, group_id))))

    def crowded(self) -> Flags:
        """Rows that hold over CROWDED times their share, by worth, of what all hold whose room is known."""
        if self._crowded is None:
            rows = len(self._nodes)
            worth, used = self.worth[:rows], self.used[:rows]
            known = (worth > 0) & ~np.isnan(used)
            share = used[known].sum() / worth[known].sum() if known.any() else 0.0
            self._crowded = known & (used > CROWDED * share * worth)
        return self._crowded

    def drawn(self, rows: list[int], words: npt.NDArray[np.uint64]) -> Floats:
        """What each of these rows draws (columns) for each of `words` (rows)."""
        return mix(self.keys[np.array(rows)][None, :] ^ words[:, None]).astype(np.float64)

    def region_worth(self) -> dict[str, float]:
        """The worth of all nodes of each region that has any, "" for those without a label."""
        if self._region_worth is None:
            sums = np.bincount(self.regions, self.worth, len(self.region_ids))
            self._region_worth = {name: float(sums[number]) for name, number in self.region_ids.items() if sums[number] > 0}
        return self._region_worth

    def _row(self) -> int:
        if self._free:
            return self._free.pop()
        row = len(self._nodes)
        self._nodes.append(None)
        if row == len(self.keys):
            size = max(64, 2 * row)
            for name in ("keys", "worth", "used", "new", "relayed", "domains", "regions"):
                old = getattr(self, name)
                grown = np.zeros(size, old.dtype)
                grown[:row] = old
                setattr(self, name, grown)
        return row
