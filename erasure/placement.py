"""Who keeps which shard of a group.

At most one shard of a group per node, always; at most one per failure domain while the domains suffice, then as evenly over them
as it goes. All nodes known for less than a day hold at most one shard of a group together, so that a flood of fresh identities
gains nothing, and nodes reached only through relays at most n - k: the relays' loss must not take a group along.

Among the allowed, weighted rendezvous hashing decides (Thaler and Ravishankar 1998): every node draws a number for the group,
those with the highest keep it. Everybody who sees the same candidates computes the same places; a node that joins takes only
what it wins, one that leaves gives up only what it had, and a node of twice the worth (erasure/candidates.py) gets about twice the
shards. Rejected: a ring with virtual nodes (uneven, and no room for the rules above), and straw-like buckets (a tree to keep in
agreement).

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
from erasure.rendezvous import Floats, mix, rendezvous, uniform, word
from protocol.errors import BadInput
from protocol.limits import MAX_SHARDS

__all__ = ["Candidate", "Placement", "Weights", "domain_of", "merged_domains", "place"]

NEW_TOGETHER = 1


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
        self._weights = weights or Weights()
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._peers: list[Candidate | None] = []
        self._keys = np.zeros(0, np.uint64)
        self._worth = np.zeros(0, np.float64)
        self._new = np.zeros(0, np.bool_)
        self._relayed = np.zeros(0, np.bool_)
        self._domains = np.zeros(0, np.int64)
        self._regions = np.zeros(0, np.int64)
        self._domain_ids: dict[str, int] = {}
        self._region_ids: dict[str, int] = {"": 0}
        self._region_worth: dict[str, float] | None = None
        self._alias: dict[str, str] = {}
        """Domains whose name operators' labels have changed."""
        self._merged = True
        for candidate in candidates:
            self.join(candidate)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, peer: object) -> bool:
        return peer in self._rows

    def join(self, candidate: Candidate) -> None:
        """A new candidate, or what is known of one now."""
        row = self._rows.get(candidate.peer)
        before = None if row is None else self._peers[row]
        if row is None:
            row = self._rows[candidate.peer] = self._row()
            self._keys[row] = word(b"mf/place/node/1", candidate.peer.encode())
        self._peers[row] = candidate
        self._worth[row] = self._weights.worth(candidate)
        self._new[row], self._relayed[row] = candidate.new, candidate.relayed
        self._regions[row] = self._region_ids.setdefault(candidate.region or "", len(self._region_ids))
        domain = self._alias.get(candidate.domain, f"domain {candidate.domain}")
        self._domains[row] = self._domain_ids.setdefault(domain, len(self._domain_ids))
        self._region_worth = None
        if candidate.operator or (before is not None and before.operator):
            self._merged = False

    def candidate(self, peer: str) -> Candidate | None:
        """As it joined last."""
        row = self._rows.get(peer)
        return None if row is None else self._peers[row]

    def leave(self, peer: str) -> None:
        """Nothing where it isn't one."""
        row = self._rows.pop(peer, None)
        if row is None:
            return
        gone, self._peers[row] = self._peers[row], None
        self._worth[row] = 0.0
        self._region_worth = None
        self._free.append(row)
        if gone is not None and gone.operator:
            self._merged = False

    def choose(
        self,
        group_id: bytes,
        n: int,
        *,
        k: int | None = None,
        salt: bytes = b"",
        model: bytes | None = None,
        held: Mapping[int, str] | None = None,
        without: Collection[str] = (),
        shards: Sequence[int] | None = None,
    ) -> list[tuple[int, str]]:
        """(shard, peer) for those of the shards 0 .. n-1 that aren't `held`, in order; fewer where too few nodes are allowed.

        `k` makes the rules about relays and regions apply; `model` draws the region, by default the group does. `without` are never
        chosen now: they refused. `shards` are the only ones to place, where not all that are missing are wanted.
        """
        if not 1 <= n <= MAX_SHARDS or (k is not None and not 1 <= k <= n):
            raise BadInput(f"a group has 1 to {MAX_SHARDS} shards and 1 <= k <= n, not n={n}, k={k}")
        held = held or {}
        missing = [shard for shard in (range(n) if shards is None else shards) if shard not in held]
        self._merge()
        scores = self._scores(group_id, salt)
        for peer in (*held.values(), *without):
            if peer in self._rows:
                scores[self._rows[peer]] = 0.0
        choosing = self._begun(len(missing), n, k, held)
        self._fill(choosing, scores)
        if k is not None and len(self._region_ids) > 1:
            self._top_up(choosing, scores, n, k, model or group_id, held)
        return self._numbered(group_id, salt, missing, choosing.chosen)

    def score(self, group_id: bytes, peer: str, salt: bytes = b"") -> float:
        """What this candidate draws for the group: higher keeps it rather. 0 for who isn't one."""
        row = self._rows.get(peer)
        return 0.0 if row is None else float(self._scores(group_id, salt)[row])

    def worth(self, peer: str) -> float:
        """What shares are in proportion to (`Weights.worth`)."""
        row = self._rows.get(peer)
        return 0.0 if row is None else float(self._worth[row])

    def domain(self, peer: str) -> str | None:
        """A name for the failure domain this candidate is in, operators' labels merged."""
        self._merge()
        row = self._rows.get(peer)
        return None if row is None else str(self._domains[row])

    def fits(self, peer: str, others: Iterable[str], n: int, k: int) -> bool:
        """Whether the rules on new and on relayed nodes let this candidate hold a shard beside these others."""
        if peer not in self._rows:
            return False
        rows = [self._rows[name] for name in (peer, *others) if name in self._rows]
        new, relayed = int(self._new[rows].sum()), int(self._relayed[rows].sum())
        row = self._rows[peer]
        return (new <= NEW_TOGETHER or not self._new[row]) and (relayed <= n - k or not self._relayed[row])

    # The rows.

    def _row(self) -> int:
        if self._free:
            return self._free.pop()
        row = len(self._peers)
        self._peers.append(None)
        if row == len(self._keys):
            size = max(64, 2 * row)
            for name in ("_keys", "_worth", "_new", "_relayed", "_domains", "_regions"):
                old = getattr(self, name)
                grown = np.zeros(size, old.dtype)
                grown[:row] = old
                setattr(self, name, grown)
        return row

    def _merge(self) -> None:
        """Domains anew after a node with an operator's label came or went: then labels merge others, or don't any more."""
        if self._merged:
            return
        present = [candidate for candidate in self._peers if candidate is not None]
        merged = merged_domains(present)
        self._alias = {candidate.domain: merged[candidate.peer] for candidate in present}
        for peer, domain in merged.items():
            self._domains[self._rows[peer]] = self._domain_ids.setdefault(domain, len(self._domain_ids))
        self._merged = True

    def _scores(self, group_id: bytes, salt: bytes) -> Floats:
        """Weighted rendezvous (Schindelhauer and Schomaker 2005): worth / -ln(draw). One per row, 0 for rows that can't be chosen."""
        drawn = mix(self._keys[: len(self._peers)] ^ word(b"mf/place/group/1", salt, group_id))
        return -self._worth[: len(self._peers)] / np.log(uniform(drawn))

    # The choice.

    def _begun(self, wanted: int, n: int, k: int | None, held: Mapping[int, str]) -> _Choosing:
        choosing = _Choosing(wanted, np.zeros(len(self._domain_ids) or 1, np.int64))
        if k is not None:
            choosing.relayed_left = n - k
        for row in (self._rows[peer] for peer in held.values() if peer in self._rows):
            choosing.used[self._domains[row]] += 1
            choosing.new_left -= int(self._new[row])
            choosing.relayed_left -= int(self._relayed[row])
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
                rows = rows[~self._new[rows]]
            if choosing.relayed_left <= 0:
                rows = rows[~self._relayed[rows]]
            fewest = int(choosing.used[self._domains[rows]].min(initial=MAX_SHARDS + 1))
            if fewest > most:
                return
            for row in rows[choosing.used[self._domains[rows]] == fewest].tolist():
                if len(choosing.chosen) == choosing.wanted:
                    return
                if choosing.used[self._domains[row]] == fewest:
                    self._take(choosing, row)
            rows = rows[~np.isin(rows, choosing.chosen)]

    def _take(self, choosing: _Choosing, row: int) -> bool:
        if (self._new[row] and choosing.new_left <= 0) or (self._relayed[row] and choosing.relayed_left <= 0):
            return False
        choosing.chosen.append(row)
        self._count(choosing, row, 1)
        return True

    def _count(self, choosing: _Choosing, row: int, by: int) -> None:
        choosing.used[self._domains[row]] += by
        choosing.new_left -= by * int(self._new[row])
        choosing.relayed_left -= by * int(self._relayed[row])

    # Regions.

    def _top_up(self, choosing: _Choosing, scores: Floats, n: int, k: int, model: bytes, held: Mapping[int, str]) -> None:
        homes = self._homes(n, k, model)
        there = [*choosing.chosen, *(self._rows[peer] for peer in held.values() if peer in self._rows)]
        lying = Counter(int(self._regions[row]) for row in there)
        for home in homes:
            for row in self._others_of(home, scores, choosing, k - lying[home]):
                spare = [out for out in choosing.chosen if lying[int(self._regions[out])] > k * (int(self._regions[out]) in homes)]
                if not spare:
                    break
                out = min(spare, key=lambda other: scores[other])
                self._swap(choosing, out, row)
                lying[int(self._regions[out])] -= 1
                lying[home] += 1

    def _homes(self, n: int, k: int, model: bytes) -> list[int]:
        """Regions whose fair share is k or more; without one, the region drawn. Nodes without a label draw too, for nobody."""
        if self._region_worth is None:
            sums = np.bincount(self._regions, self._worth, len(self._region_ids))
            self._region_worth = {name: float(sums[number]) for name, number in self._region_ids.items() if sums[number] > 0}
        whole = sum(self._region_worth.values())
        fair = [name for name, worth in self._region_worth.items() if name and worth * n >= k * whole]
        if not fair and self._region_worth:
            drawn = {name: rendezvous(worth, b"mf/place/region/1", model, name.encode()) for name, worth in self._region_worth.items()}
            fair = [name for name in (max(drawn, key=lambda name: (drawn[name], name)),) if name]
        return [self._region_ids[name] for name in sorted(fair)]

    def _others_of(self, home: int, scores: Floats, choosing: _Choosing, count: int) -> list[int]:
        """The region's best in domains that hold nothing yet: all `count` of them, or none where it can't reach k."""
        if count <= 0:
            return []
        rows = np.flatnonzero((scores > 0) & (self._regions[: len(scores)] == home))
        rows = rows[(choosing.used[self._domains[rows]] == 0) & ~self._new[rows] & ~self._relayed[rows]]
        found: dict[int, int] = {}
        for row in rows[np.argsort(scores[rows])[::-1]].tolist():
            found.setdefault(int(self._domains[row]), row)
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
        keys = self._keys[np.array(chosen)]
        shards = np.array([word(b"mf/place/shard/1", salt, group_id, bytes([shard])) for shard in missing[: len(chosen)]], np.uint64)
        drawn = mix(keys[None, :] ^ shards[:, None]).astype(np.float64)
        places: list[tuple[int, str]] = []
        for index, shard in enumerate(missing[: len(chosen)]):
            at = int(drawn[index].argmax())
            drawn[:, at] = -1.0
            candidate = self._peers[chosen[at]]
            assert candidate is not None  # rows of who left have no worth
            places.append((shard, candidate.peer))
        return places
