"""Who keeps which shard of a group.

At most one shard of a group per node, always; at most one per failure domain while the domains suffice, then as evenly over them
as it goes. All nodes known for less than a day hold at most one shard of a group together, so that a flood of fresh identities
gains nothing, and nodes reached only through relays at most n - k: the relays' loss must not take a group along.

Among the allowed, weighted rendezvous hashing decides (Thaler and Ravishankar 1998): every node draws a number for the group,
those with the highest keep it. Everybody who sees the same candidates computes the same places; a node that joins takes only
what it wins, one that leaves gives up only what it had, and a node of twice the worth (erasure/candidates.py) gets about twice the
shards. Rejected: a ring with virtual nodes (uneven, and no room for the rules above), and straw-like buckets (a tree to keep in
agreement).

Drawing alone is uneven: where a fair share is 100 shards, one of a thousand nodes draws 140. So whoever is known to hold over a tenth
more than its share stands back while others are left (bounded loads: Mirrokni, Thorup and Zadimoghaddam 2018). That is for choosing
homes; what a newcomer takes over (erasure/rebalance.py) is drawn alone, so that no more moves than must.

Shards cost the asker less nearby. A region, its owners' label, in which k shards lie can read a group alone. So a region whose
fair share of n is k or more is topped up to k; where there is none, the model draws one region in proportion to worth. Drawing it
keeps small regions from filling up, drawing it per model lets that region read the whole model. A top-up never costs a domain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from erasure.candidates import Candidate, Weights, domain_of, merged_domains
from erasure.node_table import NodeTable
from erasure.rendezvous import Floats, rendezvous, word
from protocol.errors import BadInput
from protocol.limits import MAX_SHARDS

__all__ = ["Candidate", "Placement", "Weights", "domain_of", "merged_domains", "place"]

NEW_TOGETHER = 1
_LAST = 2.0**-64
"""What the draw of a crowded node is worth: it comes after all others of a domain."""


def place(group_id: bytes, n: int, candidates: Sequence[Candidate], salt: bytes = b"", k: int | None = None) -> list[tuple[int, str]]:
    """(shard, peer) for shards 0 .. n-1 in order; fewer than n when there are fewer nodes. `Placement` for more than one group."""
    return Placement(candidates).choose(group_id, n, k=k, salt=salt)


@dataclass
class _Choosing:
    """One decision in the making: rows chosen, and what they use up."""

    wanted: int
    used: npt.NDArray[np.int64]
    chosen: list[int] = field(default_factory=list)
    new_left: int = NEW_TOGETHER
    relayed_left: int = MAX_SHARDS


class Placement:
    """The candidates of one view, kept between decisions: `join` and `leave` change it, `choose` decides.

    Building takes some 10 µs a node, a decision some 0.3 ms among 10,000 (`python -m bench.placement`).
    """

    def __init__(self, candidates: Iterable[Candidate], weights: Weights | None = None) -> None:
        self._table = NodeTable(weights or Weights())
        for candidate in candidates:
            self.join(candidate)

    def __len__(self) -> int:
        return len(self._table.rows)

    def __contains__(self, peer: object) -> bool:
        return peer in self._table.rows

    def join(self, candidate: Candidate) -> None:
        """A new candidate, or what is known of one now."""
        self._table.join(candidate)

    def leave(self, peer: str) -> None:
        """Nothing where it isn't one."""
        self._table.leave(peer)

    def candidate(self, peer: str) -> Candidate | None:
        """As it joined last."""
        row = self._table.rows.get(peer)
        return None if row is None else self._table.node(row)

    def choose(
        self,
        group_id: bytes,
        n: int,
        *,
        k: int | None = None,
        salt: bytes = b"",
        model: bytes | None = None,
        held: Mapping[int, str] | None = None,
        beside: Collection[str] = (),
        without: Collection[str] = (),
        shards: Sequence[int] | None = None,
        evenly: bool = True,
    ) -> list[tuple[int, str]]:
        """(shard, peer) for those of the shards 0 .. n-1 that aren't `held`, in order; fewer where too few nodes are allowed.

        `k` makes the rules about relays and regions apply; `model` draws the region, by default the group does. `without` are never
        chosen now: they refused. `shards` are the only ones to place, where not all that are missing are wanted; `beside` hold a shard
        of the group too, or may come back with one: a holder more of a number that is `held`, or of one that is to be placed again.
        Not `evenly`: by lot alone, whatever each holds already.
        """
        if not 1 <= n <= MAX_SHARDS or (k is not None and not 1 <= k <= n):
            raise BadInput(f"a group has 1 to {MAX_SHARDS} shards and 1 <= k <= n, not n={n}, k={k}")
        held = held or {}
        missing = [shard for shard in (range(n) if shards is None else shards) if shard not in held]
        table = self._table
        table.merge()
        scores = table.scores(group_id, salt)
        if evenly:
            scores[table.crowded()] *= _LAST
        holding = table.of({*held.values(), *beside})
        scores[[*holding, *table.of(without)]] = 0.0
        choosing = self._begun(len(missing), n, k, holding)
        self._fill(choosing, scores)
        if k is not None and len(table.region_ids) > 1:
            self._top_up(choosing, scores, n, k, model or group_id, holding)
        return self._numbered(group_id, salt, missing, choosing.chosen)

    def score(self, group_id: bytes, peer: str, salt: bytes = b"") -> float:
        """What this candidate draws for the group: higher keeps it rather. 0 for who isn't one."""
        row = self._table.rows.get(peer)
        return 0.0 if row is None else float(self._table.scores(group_id, salt)[row])

    def worth(self, peer: str) -> float:
        """What shares are in proportion to (`Weights.worth`)."""
        row = self._table.rows.get(peer)
        return 0.0 if row is None else float(self._table.worth[row])

    def crowded(self, peer: str) -> bool:
        """Whether this candidate holds clearly more than its share, and stands back."""
        row = self._table.rows.get(peer)
        return row is not None and bool(self._table.crowded()[row])

    def domain(self, peer: str) -> str | None:
        """A name for the failure domain this candidate is in, operators' labels merged."""
        self._table.merge()
        row = self._table.rows.get(peer)
        return None if row is None else str(self._table.domains[row])

    def fits(self, peer: str, others: Iterable[str], n: int, k: int) -> bool:
        """Whether the rules on new and on relayed nodes let this candidate hold a shard beside these others."""
        if peer not in self._table.rows:
            return False
        rows = self._table.of((peer, *others))
        new, relayed = int(self._table.new[rows].sum()), int(self._table.relayed[rows].sum())
        row = self._table.rows[peer]
        return (new <= NEW_TOGETHER or not self._table.new[row]) and (relayed <= n - k or not self._table.relayed[row])

    # The choice.

    def _begun(self, wanted: int, n: int, k: int | None, holding: Iterable[int]) -> _Choosing:
        choosing = _Choosing(wanted, np.zeros(self._table.domain_count(), np.int64))
        if k is not None:
            choosing.relayed_left = n - k
        for row in holding:
            choosing.used[self._table.domains[row]] += 1
            choosing.new_left -= int(self._table.new[row])
            choosing.relayed_left -= int(self._table.relayed[row])
        return choosing

    def _fill(self, choosing: _Choosing, scores: Floats) -> None:
        """Highest first, from the domains used least. A look at the highest few is mostly enough: as long as they give domains that
        hold nothing, nobody further down comes before them."""
        few = 4 * choosing.wanted + 64
        if len(scores) > 2 * few:
            rows = np.argpartition(scores, len(scores) - few)[-few:]
            self._fill_from(choosing, rows[scores[rows] > 0], scores, most=0)
        if len(choosing.chosen) < choosing.wanted:
            left = scores > 0
            left[choosing.chosen] = False
            self._fill_from(choosing, np.flatnonzero(left), scores, most=MAX_SHARDS)

    def _fill_from(self, choosing: _Choosing, rows: npt.NDArray[np.int64], scores: Floats, most: int) -> None:
        """From these rows, until the wanted are chosen or their domains hold more than `most` each."""
        rows = rows[np.argsort(scores[rows])[::-1]]
        while len(choosing.chosen) < choosing.wanted and len(rows):
            if choosing.new_left <= 0:
                rows = rows[~self._table.new[rows]]
            if choosing.relayed_left <= 0:
                rows = rows[~self._table.relayed[rows]]
            fewest = int(choosing.used[self._table.domains[rows]].min(initial=MAX_SHARDS + 1))
            if fewest > most:
                return
            for row in rows[choosing.used[self._table.domains[rows]] == fewest].tolist():
                if len(choosing.chosen) == choosing.wanted:
                    return
                if choosing.used[self._table.domains[row]] == fewest:
                    self._take(choosing, row)
            rows = rows[~np.isin(rows, choosing.chosen)]

    def _take(self, choosing: _Choosing, row: int) -> bool:
        if (self._table.new[row] and choosing.new_left <= 0) or (self._table.relayed[row] and choosing.relayed_left <= 0):
            return False
        choosing.chosen.append(row)
        self._count(choosing, row, 1)
        return True

    def _count(self, choosing: _Choosing, row: int, by: int) -> None:
        choosing.used[self._table.domains[row]] += by
        choosing.new_left -= by * int(self._table.new[row])
        choosing.relayed_left -= by * int(self._table.relayed[row])

    # Regions.

    def _top_up(self, choosing: _Choosing, scores: Floats, n: int, k: int, model: bytes, holding: Sequence[int]) -> None:
        regions = self._table.regions
        homes = self._homes(n, k, model)
        lying = Counter(int(regions[row]) for row in (*choosing.chosen, *holding))
        for home in homes:
            for row in self._others_of(home, scores, choosing, k - lying[home]):
                spare = [out for out in choosing.chosen if lying[int(regions[out])] > k * (int(regions[out]) in homes)]
                if not spare:
                    break
                out = min(spare, key=lambda other: scores[other])
                self._swap(choosing, out, row)
                lying[int(regions[out])] -= 1
                lying[home] += 1

    def _homes(self, n: int, k: int, model: bytes) -> list[int]:
        """Regions whose fair share is k or more; without one, the region drawn. Nodes without a label draw too, for nobody."""
        worths = self._table.region_worth()
        whole = sum(worths.values())
        fair = [name for name, worth in worths.items() if name and worth * n >= k * whole]
        if not fair and worths:
            drawn = {name: rendezvous(worth, b"mf/place/region/1", model, name.encode()) for name, worth in worths.items()}
            fair = [name for name in (max(drawn, key=lambda name: (drawn[name], name)),) if name]
        return [self._table.region_ids[name] for name in sorted(fair)]

    def _others_of(self, home: int, scores: Floats, choosing: _Choosing, count: int) -> list[int]:
        """The region's best in domains that hold nothing yet: all `count` of them, or none where it can't reach k."""
        if count <= 0:
            return []
        rows = np.flatnonzero((scores > 0) & (self._table.regions[: len(scores)] == home))
        rows = rows[(choosing.used[self._table.domains[rows]] == 0) & ~self._table.new[rows] & ~self._table.relayed[rows]]
        found: dict[int, int] = {}
        for row in rows[np.argsort(scores[rows])[::-1]].tolist():
            found.setdefault(int(self._table.domains[row]), row)
            if len(found) == count:
                return list(found.values())
        return []

    def _swap(self, choosing: _Choosing, out: int, into: int) -> None:
        """`into` is neither new nor relayed, and its domain is free."""
        choosing.chosen.remove(out)
        self._count(choosing, out, -1)
        self._take(choosing, into)

    # Numbers.

    def _numbered(self, group_id: bytes, salt: bytes, missing: list[int], chosen: list[int]) -> list[tuple[int, str]]:
        """Each shard goes to the one of the chosen that draws highest for it, so that a change of one moves few numbers."""
        if not chosen:
            return []
        shards = np.array([word(b"mf/place/shard/1", salt, group_id, bytes([shard])) for shard in missing[: len(chosen)]], np.uint64)
        drawn = self._table.drawn(chosen, shards)
        places: list[tuple[int, str]] = []
        for index, shard in enumerate(missing[: len(chosen)]):
            at = int(drawn[index].argmax())
            drawn[:, at] = -1.0
            candidate = self._table.node(chosen[at])
            assert candidate is not None  # rows of who left have no worth
            places.append((shard, candidate.peer))
        return places
