"""Who is in the next pass. Pure: what waits goes in, shares come out.

A pass is of one stage. Every sequence that waits for a token (or for a few drafted ones to be verified) is in it, so that all replies
go on at the same pace, and beside them at most CUT positions of prompts, so that a long prompt holds nobody up for longer than that
takes. Each counts with the rows of logits it needs, so that no more of those exist at once than the stage has memory for.

Prompts, and tokens where there are more than fit, go by priority, then by who was served least, then by what is done of them, so that
short prompts overtake long ones. Each account has a count of positions computed for it, divided by its weight (the virtual
counters of "Fairness in Serving Large Language Models", Sheng et al. 2024); one that comes back after a pause begins level with the
least of those that wait, so that nobody saves up. Whoever waits gains a priority every PATIENCE passes, so that nobody waits for
ever. Stages take turns.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from runtime.memory import CUT, ROWS

PATIENCE = 64
SHORT = 64
"""Positions up to which a sequence that was sampled before counts as one that waits for a token: drafted ones included."""


class Allowance(Protocol):
    """What an account is entitled to."""

    def weight(self, account: str) -> float:
        """Its share of the machine beside others', > 0."""


class Equal:
    """Everybody the same."""

    def weight(self, account: str) -> float:
        return 1.0


class Told:
    """What came with each account's last request; whoever isn't remembered any more counts as one."""

    def __init__(self, most: int = 4_096) -> None:
        self._most = most
        self._weights: OrderedDict[str, float] = OrderedDict()

    def tell(self, account: str, weight: float) -> None:
        self._weights[account] = weight
        self._weights.move_to_end(account)
        if len(self._weights) > self._most:
            self._weights.popitem(last=False)

    def weight(self, account: str) -> float:
        return self._weights.get(account, 1.0)


@dataclass(slots=True)
class Waiting:
    """`left` positions of a sequence to compute, `done` since it waits; it counts as `rows`. `token`: a reply waits, not a prompt."""

    session: str
    stage: str
    left: int
    token: bool
    account: str
    priority: int
    since: int
    rows: int = 1
    done: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    session: str
    count: int


class Scheduler:
    def __init__(self, allowance: Allowance | None = None) -> None:
        self._allowance = allowance or Equal()
        self._waiting: dict[str, Waiting] = {}
        self._rows: dict[str, int] = {}
        self._served: dict[str, float] = {}
        self._turns: dict[str, int] = {}
        self._passes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self, stage: str) -> int:
        """Sequences of one stage that wait."""
        return sum(one.stage == stage for one in self._waiting.values())

    @property
    def long(self) -> bool:
        """Whether a prompt waits, and a pass may take long."""
        return any(not one.token for one in self._waiting.values())

    def limit(self, stage: str, rows: int) -> None:
        """At most `rows` rows in a pass of `stage`, or one sequence that alone is more."""
        self._rows[stage] = rows

    def put(self, session: str, stage: str, count: int, *, token: bool, account: str = "", priority: int = 0, rows: int = 1) -> None:
        """`count` positions of a session wait from now on; they replace what waited before. `rows` of logits will be needed of them."""
        if self._waiting and not any(one.account == account for one in self._waiting.values()):
            least = min(self._served.get(one.account, 0.0) for one in self._waiting.values())
            self._served[account] = max(self._served.get(account, 0.0), least)
        before = self._waiting.get(session)
        since, done = (self._passes, 0) if before is None else (before.since, before.done)
        self._waiting[session] = Waiting(session, stage, count, token and count <= SHORT, account, priority, since, max(rows, 1), done)

    def drop(self, session: str) -> None:
        self._waiting.pop(session, None)

    def next_pass(self) -> list[Share]:
        """Shares of one stage, none when nothing waits. What they cover waits no more."""
        if not self._waiting:
            self._served.clear()
            return []
        self._passes += 1
        mine = list(self._waiting.values())
        stage = mine[0].stage
        if len(mine) > 1:  # one by itself, the most often, is in no order
            stage = min({one.stage for one in mine}, key=lambda name: (self._turns.get(name, 0), name))
            mine = sorted((one for one in mine if one.stage == stage), key=self._rank)
        self._turns[stage] = self._passes
        shares = self._shares(mine, self._rows.get(stage, ROWS))
        for share in shares:
            self._serve(share)
        return shares

    def _shares(self, mine: list[Waiting], rows: int) -> list[Share]:
        """Tokens whole, then prompts, each up to the first that has no room; a crowd's tokens leave some to a prompt."""
        tokens, prompts = [one for one in mine if one.token], [one for one in mine if not one.token]
        shares: list[Share] = []
        room, kept = CUT, min(prompts[0].rows, rows // 2) if prompts else 0
        for one in tokens:
            if shares and one.rows > rows - kept:
                break
            shares.append(Share(one.session, one.left))
            rows -= one.rows
        for one in prompts:
            if shares and (one.rows > rows or not room):
                break
            shares.append(Share(one.session, min(one.left, room)))
            rows, room = rows - one.rows, room - shares[-1].count
        return shares

    def _rank(self, one: Waiting) -> tuple[int, float, int, int]:
        aged = one.priority + (self._passes - one.since) // PATIENCE
        return -aged, self._served.get(one.account, 0.0), one.done, one.since

    def _serve(self, share: Share) -> None:
        one = self._waiting[share.session]
        self._served[one.account] = self._served.get(one.account, 0.0) + share.count / self._allowance.weight(one.account)
        one.left, one.done = one.left - share.count, one.done + share.count
        if not one.left:
            del self._waiting[share.session]
