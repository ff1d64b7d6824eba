"""The swarm at work: who is up, who sees that, whose turn it is, what is placed, what is lost."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

from erasure.durability import enough_durable
from erasure.placement import place
from erasure.presence import Presence
from erasure.repair import Alarm, Claim, Command, Repair, Repairer
from erasure.standing import standing
from tests.simulator.churn import Lives
from tests.simulator.events import Events
from tests.simulator.groups import NEVER, Claimed, Placed, SimGroup
from tests.simulator.jobs import Job
from tests.simulator.nodes import SimNode, make_node
from tests.simulator.reads import Requests
from tests.simulator.results import Ideal, Result, Sample
from tests.simulator.scenario import HOUR, Scenario

NOTICED = 5.0
ROUND = 60.0
SAMPLE = 600.0
FORGOTTEN = 13 * HOUR
WARNING = 600.0


class SimSwarm:
    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.settings = scenario.settings()
        self.rng = random.Random(scenario.seed)
        self.events = Events()
        self.nodes: list[SimNode] = []
        self.by_name: dict[str, SimNode] = {}
        self.up: list[SimNode] = []
        self.cut = False
        self.presences = [Presence(0.0, scenario.gone_after)]
        k, n = scenario.code()
        shard_bytes = -(-scenario.group_bytes // k)
        self.groups = [
            SimGroup(number, number.to_bytes(32, "big"), k, n, min(256, 2 * n), shard_bytes) for number in range(scenario.groups)
        ]
        self.result = Result(scenario.nodes, scenario.groups, k, n, scenario.hours)
        self._ideal = Ideal(k, n, shard_bytes, scenario.seed)
        self._least_before = 0
        self._r = enough_durable(k, n)
        self._told = 0
        self._place_in_up: dict[int, int] = {}
        self._active: set[int] = set()
        self._lives = Lives(scenario.churn, self, random.Random(f"lives {scenario.seed}"))
        self._requests = Requests(self, random.Random(f"reads {scenario.seed}"))

    def run(self) -> Result:
        for _ in range(self.scenario.nodes):
            self._join()
        for group in self.groups:
            self._place_first(group)
        self._schedule()
        self.events.run(self.scenario.hours * HOUR)
        self.result.events = self.events.done
        self.result.least_bytes = self._ideal.bytes - self._least_before
        self.result.alarmed = sum(bool(group.alarms) for group in self.groups)
        return self.result

    def _schedule(self) -> None:
        churn = self.scenario.churn
        for at in churn.subnets_lost:
            self.events.at(at, self._lose_subnet)
        for at, lasts, share in churn.cuts:
            self.events.at(at, lambda share=share: self._begin_cut(share))  # type: ignore[misc]
            self.events.at(at + lasts, self._end_cut)
        if churn.leave > 0:
            self._join_later()
        self._requests.begin()
        self.events.after(ROUND, self._minute)
        self.events.after(0.0, self._sample)
        if self.scenario.warm:
            self.events.at(self.scenario.warm, self._warmed)

    def _warmed(self) -> None:
        self._least_before = self._ideal.bytes
        self.result.traffic = type(self.result.traffic)()
        self.result.reads = type(self.result.reads)()

    # Comings and goings

    def _join(self) -> None:
        node = make_node(len(self.nodes), self.scenario.subnets(), self.rng)
        node.came = node.changed = self.events.now
        node.side = self.rng.randrange(len(self.presences))
        self.nodes.append(node)
        self.by_name[node.name] = node
        self._ideal.came(node.number)
        self._now_up(node)
        self._lives.begin(node)

    def _join_later(self) -> None:
        def join() -> None:
            self._join()
            self._join_later()

        self.events.after(self.rng.expovariate(self.scenario.churn.leave * self.scenario.nodes / HOUR), join)

    def _now_up(self, node: SimNode) -> None:
        node.up, node.changed = True, self.events.now
        self._place_in_up[node.number] = len(self.up)
        self.up.append(node)
        self._notice_later(node)

    def go_away(self, node: SimNode) -> None:
        if not node.up:
            return
        node.up, node.changed = False, self.events.now
        at, last = self._place_in_up.pop(node.number), self.up.pop()
        if last is not node:
            self.up[at] = last
            self._place_in_up[last.number] = at
        self._notice_later(node)

    def come_back(self, node: SimNode) -> None:
        if not node.up and not node.left:
            self._now_up(node)

    def leave(self, node: SimNode) -> None:
        if node.left:
            return
        self.go_away(node)
        node.left = True
        self.result.left += 1
        self._ideal.left(node.number)
        for number in node.shards:
            group = self.groups[number]
            if group.lost_at is None and group.surviving() < group.k:
                self._lost(group)
        self.events.after(FORGOTTEN, lambda: self._forget(node))

    def _forget(self, node: SimNode) -> None:
        for number, shard in node.shards.items():
            group = self.groups[number]
            group.holders[shard].remove(node)
            if not group.holders[shard]:
                del group.holders[shard]
            group.changed()
        for presence in self.presences:
            presence.forget(node.name)

    def _lost(self, group: SimGroup) -> None:
        now = self.events.now
        group.lost_at = now
        self._active.discard(group.number)
        self.result.lost.append((group.number, now))
        warned = max((now - at for at in group.alarms), default=0.0)
        if warned < WARNING:
            self.result.late.append((group.number, warned))

    def _lose_subnet(self) -> None:
        subnet = self.rng.choice(self.up).subnet
        for node in self.nodes:
            if node.subnet == subnet:
                self.leave(node)

    # Who sees whom

    def presence(self, node: SimNode) -> Presence:
        return self.presences[node.side]

    def _notice_later(self, node: SimNode) -> None:
        changed = node.changed

        def notice() -> None:
            if node.changed == changed:
                for side, presence in enumerate(self.presences):
                    if not self.cut or side == node.side:
                        presence.see(node.name, node.up, self.events.now, since=changed)

        self.events.after(NOTICED if self.events.now else 0.0, notice)

    def _begin_cut(self, share: float) -> None:
        self.cut = True
        if len(self.presences) == 1:
            self.presences.append(copy.deepcopy(self.presences[0]))
        for node in self.nodes:
            node.side = int(self.rng.random() < share)
        self._see_across(False)

    def _end_cut(self) -> None:
        self.cut = False
        self._see_across(True)
        for group in self.groups:
            group.healed(self.events.now)

    def _see_across(self, routable: bool) -> None:
        for node in self.nodes:
            if node.up:
                self.presences[1 - node.side].see(node.name, routable, self.events.now)
            elif routable:
                self.presences[1 - node.side].see(node.name, False, self.events.now, since=node.changed)

    # Rounds of the policies

    def policy(self, node: SimNode) -> Repairer:
        if node.repairer is None:
            node.repairer = Repairer(node.name, self.settings)
        return node.repairer

    def _minute(self) -> None:
        now = self.events.now
        for group in self.groups:
            if group.lost_at is not None:
                continue
            group.settle(now)
            if self._somebody_acts(group):
                self._active.add(group.number)
                for nodes in group.holders.values():
                    for node in nodes:
                        if node.up and node.round_at < now:
                            self._round_later(node)
            else:
                self._active.discard(group.number)
        self.events.after(ROUND, self._minute)

    def _somebody_acts(self, group: SimGroup) -> bool:
        """Whether the least informed would say that fewer than r shards count."""
        if self.scenario.everybody_plans:
            return True
        if not self.cut and not group.recent and group.present() >= self._r:
            return False
        view, now = group.settled(), self.events.now
        return any(
            len(standing(view, presence, now, self.settings.bandwidth, self.settings.clocks).counted) < self._r
            for presence in self.presences
        )

    def _round_later(self, node: SimNode) -> None:
        node.round_at = self.events.now + node.phase
        self.events.at(node.round_at, lambda: self._round(node))

    def _round(self, node: SimNode) -> None:
        if not node.up:
            return
        now = self.events.now
        mine = [self.groups[number] for number in sorted(node.shards) if number in self._active]
        views = [group.seen_by(node, now) for group in mine]
        claims = {group.name: group.claims_seen_by(node, now) for group in mine if group.claims}
        self.result.plans += 1
        for command in self.policy(node).plan(views, self.presence(node), claims, now, self.rng):
            self._obey(command, node)

    def _obey(self, command: Command, node: SimNode) -> None:
        group = self.groups[int.from_bytes(command.group, "big")]
        if isinstance(command, Claim):
            self.tell_claim(group, command, node)
        elif isinstance(command, Repair):
            Job(self, node, group, command).start()
        elif isinstance(command, Alarm):
            group.alarms.append(self.events.now)

    # Holdings

    def tell_claim(self, group: SimGroup, claim: Claim, node: SimNode) -> None:
        group.claims.append(Claimed(*self._telling(node), claim=claim, node=node))

    def _telling(self, node: SimNode) -> tuple[int, float, int, float]:
        self._told += 1
        return self._told, self.events.now, node.side, NEVER if self.cut else self.events.now

    def put(self, group: SimGroup, shard: int, node: SimNode) -> None:
        """The shard is durable there; the swarm hears of it by and by."""
        node.shards[group.number] = shard
        group.recent.append(Placed(*self._telling(node), shard=shard, node=node))
        group.holders.setdefault(shard, []).append(node)
        group.changed()

    def _place_first(self, group: SimGroup) -> None:
        candidates = [node.candidate() for node in self.rng.sample(self.up, min(len(self.up), group.n + 16))]
        for shard, peer in place(group.name, group.n, candidates, k=group.k):
            node = self.by_name[peer]
            node.shards[group.number] = shard
            group.holders[shard] = [node]
        self._ideal.group(group.number, [node.number for nodes in group.holders.values() for node in nodes])

    def some_up(self, count: int, seen_from: SimNode) -> Sequence[SimNode]:
        """Nodes to place at: a sample of those that can be reached."""
        drawn = self.rng.sample(self.up, min(len(self.up), 4 * count))
        return [node for node in drawn if not self.cut or node.side == seen_from.side][: 2 * count]

    def moved(self, read: int = 0, written: int = 0, wasted: int = 0) -> None:
        traffic = self.result.traffic
        traffic.read += read
        traffic.written += written
        traffic.wasted += wasted

    def _sample(self) -> None:
        spare = [group.present() - group.k for group in self.groups]
        sample = Sample(
            hours=self.events.now / HOUR,
            up=len(self.up),
            least_spare=min(spare),
            mean_spare=sum(spare) / len(spare),
            repair_bytes=self.result.traffic.total(),
            least_bytes=self._ideal.bytes - self._least_before,
            lost=len(self.result.lost),
        )
        self.result.samples.append(sample)
        self.events.after(SAMPLE, self._sample)


def simulate(scenario: Scenario) -> Result:
    return SimSwarm(scenario).run()
