from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.durability import enough_durable
from erasure.presence import GRACE, HOUR, Presence
from erasure.repair import Alarm, Claim, Command, Drop, Repair, Repairer, Settings
from erasure.standing import Clocks, GroupView, comes_before, missing, spare_shard, standing

K, N = 4, 10
GROUP = bytes(32)
SHARD = 1_000_000
PEERS = [f"p{number}" for number in range(N)]


def view(group: bytes = GROUP, holders: dict[int, Sequence[str]] | None = None, full: Sequence[str] = (), n_max: int = 2 * N) -> GroupView:
    return GroupView(group, K, N, n_max, SHARD, {j: [PEERS[j]] for j in range(N)} if holders is None else holders, full)


def presence_of(away: Iterable[str] = (), since: float = 0.0, gone_after: float = HOUR, others: Sequence[str] = ()) -> Presence:
    """All there from the beginning; those away went one after another, apart, the last at `since`."""
    presence = Presence(-10 * HOUR, gone_after)
    for peer in [*PEERS, *others, *(f"bystander{number}" for number in range(200))]:
        presence.see(peer, True, -10 * HOUR)
    gone = list(away)
    for place, peer in enumerate(gone):
        presence.see(peer, False, since - 130.0 * (len(gone) - 1 - place))
    return presence


class Swarm:
    """One `Repairer` per peer; what one claims the others see a moment later, unless `deaf` to it."""

    def __init__(self, peers: Sequence[str], seed: int = 0, **options: float) -> None:
        self.rng = random.Random(seed)
        self.policies = {peer: Repairer(peer, Settings(**options)) for peer in peers}  # type: ignore[arg-type]
        self.claims: dict[bytes, list[Claim]] = {}
        self.deaf: set[str] = set()

    def round(self, views: Sequence[GroupView], presence: Presence, now: float) -> dict[str, list[Command]]:
        done: dict[str, list[Command]] = {}
        for peer, policy in self.policies.items():
            if presence.away(peer, now) != 0.0:
                continue
            seen = {} if peer in self.deaf else {group: list(claims) for group, claims in self.claims.items()}
            commands = policy.plan(views, presence, seen, now, self.rng)
            for command in commands:
                if isinstance(command, Claim):
                    self.tell(command)
            done[peer] = commands
        return done

    def tell(self, claim: Claim) -> None:
        others = [old for old in self.claims.get(claim.group, []) if old.peer != claim.peer]
        self.claims[claim.group] = [*others, claim]

    def repairs(self, views: Sequence[GroupView], presence: Presence, begin: float, rounds: int) -> list[tuple[float, str, Repair]]:
        found = []
        for number in range(rounds):
            now = begin + 60.0 * number
            for peer, commands in self.round(views, presence, now).items():
                found += [(now, peer, command) for command in commands if isinstance(command, Repair)]
        return found


def best(away: Iterable[str], now: float, group: bytes = GROUP) -> list[str]:
    """The peers that are there, in today's order."""
    there = [peer for peer in PEERS if peer not in set(away)]
    shown = view(group)
    return sorted(there, key=lambda peer: sum(comes_before(shown, other, peer, now) for other in there))


def test_nothing_is_done_while_r_shards_count() -> None:
    presence = presence_of(PEERS[7:])
    assert enough_durable(K, N) == 7
    assert Swarm(PEERS).repairs([view()], presence, 2 * HOUR, 20) == []


def test_below_r_exactly_one_restores_n_from_one_read() -> None:
    presence = presence_of(PEERS[6:])
    found = Swarm(PEERS).repairs([view()], presence, 2 * HOUR, 8)
    assert len(found) == 1
    when, who, repair = found[0]
    assert when - 2 * HOUR <= 120
    assert who == best(PEERS[6:], 2 * HOUR)[0]
    assert repair.make == (10, 11, 12, 13)
    assert repair.cost == (K - 1 + 4) * SHARD


def test_an_absence_shorter_than_the_long_clock_costs_nothing() -> None:
    presence = presence_of(PEERS[6:], gone_after=12 * HOUR)
    assert Swarm(PEERS).repairs([view()], presence, 5 * HOUR, 20) == []
    assert len(Swarm(PEERS).repairs([view()], presence, 12 * HOUR + 60, 8)) == 1


def test_when_many_leave_the_clock_runs_faster() -> None:
    presence = presence_of([f"bystander{number}" for number in range(60)], since=2 * HOUR, gone_after=12 * HOUR)
    for peer in PEERS[5:]:
        presence.see(peer, False, 2 * HOUR)
    now = 2 * HOUR + GRACE + 60
    stands = standing(view(), presence, now, 4e6, Clocks())
    assert presence.leaving_rate(now) * HOUR > 0.1
    assert len(stands.present) == 5
    assert stands.counted == stands.present


def test_missing_columns_take_new_numbers_while_the_encoding_has_any() -> None:
    presence = presence_of(PEERS[6:])
    stands = standing(view(n_max=11), presence, 2 * HOUR, 4e6, Clocks())
    assert missing(view(n_max=11), stands) == (10, 6, 7, 8)
    assert missing(view(n_max=N), stands) == (6, 7, 8, 9)


def test_a_returning_shard_counts_at_once() -> None:
    presence = presence_of(PEERS[6:])
    swarm = Swarm(PEERS)
    presence.see("p9", True, 2 * HOUR)
    assert swarm.repairs([view()], presence, 2 * HOUR, 10) == []


def test_a_full_holding_comes_first_and_reads_nothing() -> None:
    presence = presence_of(PEERS[6:], others=["keeper"])
    shown = view(full=["keeper"])
    found = Swarm([*PEERS, "keeper"]).repairs([shown], presence, 2 * HOUR, 8)
    assert [(who, repair.cost) for _, who, repair in found] == [("keeper", 4 * SHARD)]


def test_a_full_holding_repairs_what_shards_alone_no_longer_can() -> None:
    presence = presence_of(PEERS[2:], others=["keeper"])
    assert Swarm(PEERS).repairs([view()], presence, 2 * HOUR, 8) == []
    found = Swarm([*PEERS, "keeper"]).repairs([view(full=["keeper"])], presence, 2 * HOUR, 8)
    assert [who for _, who, _ in found] == ["keeper"]
    assert len(found[0][2].make) == 8


def test_when_the_first_dies_at_work_the_next_takes_over() -> None:
    presence = presence_of(PEERS[6:])
    swarm = Swarm(PEERS)
    [(when, first, _)] = swarm.repairs([view()], presence, 2 * HOUR, 3)
    presence.see(first, False, when + 60)
    again = swarm.repairs([view()], presence, when + 120, 6)
    assert [who for _, who, _ in again] == [best([*PEERS[6:], first], when)[0]]


def test_who_claims_and_does_nothing_is_passed_over_after_a_while() -> None:
    presence = presence_of(PEERS[6:])
    swarm = Swarm(PEERS, longest_claim=600.0)
    liar = best(PEERS[6:], 2 * HOUR)[0]
    del swarm.policies[liar]
    swarm.tell(Claim(GROUP, liar, 1e12))
    found = swarm.repairs([view()], presence, 2 * HOUR, 20)
    assert len(found) == 1
    assert 600 <= found[0][0] - 2 * HOUR <= 900


def test_a_claim_by_one_who_holds_nothing_is_nothing() -> None:
    presence = presence_of(PEERS[6:])
    swarm = Swarm(PEERS)
    swarm.tell(Claim(GROUP, "bystander1", 1e12))
    assert len(swarm.repairs([view()], presence, 2 * HOUR, 4)) == 1


def test_of_two_that_claim_at_once_the_worse_placed_stands_back() -> None:
    presence = presence_of(PEERS[6:])
    swarm = Swarm(PEERS)
    first, second = best(PEERS[6:], 2 * HOUR)[:2]
    swarm.policies = {peer: swarm.policies[peer] for peer in (second, first)}
    swarm.policies[second].plan([view()], presence, {}, 2 * HOUR - 300, swarm.rng)  # it saw the losses earlier than the other
    told = swarm.round([view()], presence, 2 * HOUR)
    assert [type(command) for commands in told.values() for command in commands] == [Claim, Claim] or told[first] == []
    swarm.tell(Claim(GROUP, first, 3 * HOUR))
    later = swarm.repairs([view()], presence, 2 * HOUR + 60, 4)
    assert [who for _, who, _ in later if who == second] == []


def test_the_lot_changes_daily() -> None:
    firsts = {best([], day * 86_400.0)[0] for day in range(30)}
    assert len(firsts) > 4


def test_the_most_endangered_group_goes_first_and_bandwidth_is_kept() -> None:
    presence = presence_of(PEERS[6:])
    weak = view(b"w" * 32, {j: [PEERS[j]] for j in [0, 1, 2, 3, 4, 9]}, full=["p0"])
    views = [view(bytes([number]) * 32, full=["p0"]) for number in range(5)] + [weak]
    policy = Repairer("p0", Settings(bandwidth=SHARD / 60))  # a repair takes four or five minutes
    claims = []
    for number in range(12):
        now = 2 * HOUR + 60 * number
        claims += [command for command in policy.plan(views, presence, {}, now, random.Random(1)) if isinstance(command, Claim)]
    first = claims[0].group
    assert first == weak.group
    assert 2 <= len({claim.group for claim in claims}) <= 4


def test_a_group_that_fails_is_put_off_and_holds_up_no_other() -> None:
    presence = presence_of(PEERS[6:])
    bad, good = view(b"b" * 32), view(b"g" * 32)
    policy, rng = Repairer("p0"), random.Random(3)
    begun: dict[bytes, list[float]] = {bad.group: [], good.group: []}
    for number in range(120):
        now = 2 * HOUR + 600 + 60.0 * number
        for command in policy.plan([bad, good], presence, {}, now, rng):
            if isinstance(command, Repair):
                begun[command.group].append(now)
                (policy.failed(command.group, now, rng) if command.group == bad.group else policy.finished(command.group, now))
    assert begun[good.group][0] <= 2 * HOUR + 1200
    waits = [later - earlier for earlier, later in zip(begun[bad.group], begun[bad.group][1:], strict=False)]
    assert len(waits) >= 2
    assert waits[-1] > waits[0]


def test_an_unreadable_group_is_never_claimed_but_told() -> None:
    presence = presence_of(PEERS[3:])
    commands = Repairer("p0").plan([view()], presence, {}, 2 * HOUR, random.Random(0))
    assert [type(command) for command in commands] == [Alarm]
    alarm = commands[0]
    assert isinstance(alarm, Alarm)
    assert (alarm.survives, alarm.chance, alarm.seconds) == (-1, 1.0, 0.0)


def test_a_finished_repair_isnt_begun_again_before_all_have_seen_it() -> None:
    presence = presence_of(PEERS[6:])
    swarm = Swarm(PEERS)
    [(when, who, repair)] = swarm.repairs([view()], presence, 2 * HOUR, 3)
    swarm.tell(swarm.policies[who].finished(repair.group, when + 60))
    assert swarm.repairs([view()], presence, when + 120, 4) == []


def test_work_renews_its_claim() -> None:
    presence = presence_of(PEERS[6:])
    swarm = Swarm(PEERS)
    [(when, who, _)] = swarm.repairs([view()], presence, 2 * HOUR, 3)
    renewed = [
        command.expires
        for number in range(1, 10)
        for command in swarm.round([view()], presence, when + 60 * number)[who]
        if isinstance(command, Claim)
    ]
    assert renewed
    assert renewed[-1] > when + 540
    assert swarm.policies[who].working() == [GROUP]


def test_surplus_goes_last_copies_first() -> None:
    presence = presence_of()
    holders: dict[int, Sequence[str]] = {j: [PEERS[j]] for j in range(N)}
    holders[3] = ["p3", "bystander0"]
    shown = view(holders=holders)
    spare = {peer: spare_shard(peer, shown, presence, 0.0) for peer in [*PEERS, "bystander0"]}
    assert [shard for shard in spare.values() if shard is not None] == [3]
    [who] = [peer for peer, shard in spare.items() if shard is not None]
    policy = Repairer(who, Settings(surplus_after=3600.0))
    assert policy.plan([shown], presence, {}, 0.0, random.Random(0)) == []
    assert policy.plan([shown], presence, {}, 3599.0, random.Random(0)) == []
    assert policy.plan([shown], presence, {}, 3600.0, random.Random(0)) == [Drop(GROUP, 3)]
    assert policy.plan([view()], presence, {}, 9000.0, random.Random(0)) == []


@settings(max_examples=60)
@given(st.sets(st.sampled_from(PEERS), max_size=6), st.integers(0, 1000), st.sets(st.sampled_from(PEERS), max_size=3))
def test_one_repairer_whoever_is_gone_and_whoever_is_deaf(gone: set[str], seed: int, deaf: set[str]) -> None:
    """All that hear claims: at most one begins; those deaf to claims may double it, but never more than there are deaf."""
    presence = presence_of(sorted(gone))
    swarm = Swarm(PEERS, seed)
    swarm.deaf = deaf
    found = swarm.repairs([view()], presence, 2 * HOUR, 9)
    if len(gone) <= 3:
        assert found == []
    else:
        assert 1 <= len(found) <= 1 + len(deaf - gone)
        assert all(N - len(gone) + len(repair.make) == N for _, _, repair in found)


@pytest.mark.parametrize("full", [(), ("p1",)])
def test_everybody_sees_the_same_order(full: Sequence[str]) -> None:
    shown = view(full=full)
    for one in PEERS:
        for other in PEERS:
            if one != other:
                assert comes_before(shown, one, other, 5.0) != comes_before(shown, other, one, 5.0)
    if full:
        assert all(comes_before(shown, "p1", other, 5.0) for other in PEERS if other != "p1")


def leaving(count: int, since: float) -> Presence:
    """So many of 210 nodes left for good, one after another over the two hours before `since`, none of them a holder."""
    presence = presence_of(gone_after=12 * HOUR)
    for number in range(count):
        presence.see(f"bystander{number}", False, since - 2 * HOUR + number * 2 * HOUR / count)
    return presence


def test_in_danger_an_absence_counts_for_its_grace_and_no_longer() -> None:
    """A hundredth an hour: with six of ten there and k = 4 the chance to fall below k before a repair is over 1e-7, not over 1e-4."""
    presence = leaving(4, 2 * HOUR)
    for place, peer in enumerate(PEERS[6:]):
        presence.see(peer, False, 2 * HOUR - 130.0 * place)

    def counted(now: float) -> int:
        return len(standing(view(), presence, now, 4e6, Clocks()).counted)

    assert counted(2 * HOUR + 300) == 10
    assert counted(2 * HOUR + GRACE + 60) == 6
    relaxed = Clocks(danger=1e-3, great_danger=1e-2)
    assert len(standing(view(), presence, 2 * HOUR + GRACE + 60, 4e6, relaxed).counted) == 10


def test_in_great_danger_only_who_answers_counts() -> None:
    presence = leaving(60, 2 * HOUR)
    for place, peer in enumerate(PEERS[5:]):
        presence.see(peer, False, 2 * HOUR - 130.0 * place)
    stands = standing(view(), presence, 2 * HOUR + 61, 4e6, Clocks())
    assert stands.counted == stands.present == frozenset(range(5))


def test_who_comes_back_every_night_counts_even_in_danger() -> None:
    presence = leaving(60, 2 * HOUR)
    for night in range(3):
        presence.see("p9", False, (3 + 24 * night) * HOUR)
        presence.see("p9", True, (11 + 24 * night) * HOUR)
    for peer in PEERS[5:9]:
        presence.see(peer, False, 74 * HOUR)
    for number in range(60):
        presence.see(f"bystander{100 + number}", False, 74 * HOUR + 60 * number)
    presence.see("p9", False, 75 * HOUR)
    stands = standing(view(), presence, 76 * HOUR, 4e6, Clocks())
    assert presence.leaving_rate(76 * HOUR) * HOUR > 0.1
    assert stands.counted - stands.present == {9}
    assert stands.safe == len(stands.present) + 1


def test_the_alarm_comes_at_a_small_chance_already() -> None:
    presence = leaving(60, 2 * HOUR)
    for place, peer in enumerate(PEERS[6:]):
        presence.see(peer, False, 2 * HOUR - 130.0 * place)
    alarms = [
        command for command in Repairer("p0").plan([view()], presence, {}, 2 * HOUR + GRACE, random.Random(0)) if isinstance(command, Alarm)
    ]
    assert len(alarms) == 1
    assert 1e-3 < alarms[0].chance < 0.2
    assert alarms[0].survives == 2
    assert alarms[0].seconds > 600


def test_what_was_remembered_of_another_time_is_forgotten() -> None:
    """A node that saw a group below r long ago waits for those before it in the order again, as if it saw it for the first time."""
    presence = presence_of(PEERS[6:])
    last = best(PEERS[6:], 2 * HOUR)[-1]
    policy, rng = Repairer(last), random.Random(0)
    assert policy.plan([view()], presence, {}, 2 * HOUR, rng) == []
    assert policy.plan([view()], presence, {}, 5 * HOUR, rng) == []
    assert any(
        isinstance(command, Claim) for minute in range(1, 9) for command in policy.plan([view()], presence, {}, 5 * HOUR + 60 * minute, rng)
    )
