"""What keeps models whole, spread and leased while nobody asks, put together."""

from __future__ import annotations

import time
from dataclasses import dataclass

from node.base import Base
from node.hand_over import HandOver
from node.rebalancer import Rebalancer
from node.renew_leases import LeaseRenewer
from node.repair import Repairs, settings_for
from node.repair_memory import RepairMemory
from node.repair_sight import RepairSight
from node.repair_work import RepairWork
from node.storing_setup import Storing
from node.widen import Widener


@dataclass
class Upkeep:
    repairs: Repairs
    hands: HandOver
    rebalancer: Rebalancer
    renewer: LeaseRenewer
    widener: Widener


def make_upkeep(base: Base, storing: Storing) -> Upkeep:
    config, me, swarm, transfer, book, keeper = base.config, base.identity.peer_id, base.swarm, base.transfer, storing.book, storing.keeper
    work = RepairWork(swarm, transfer, book, storing.placer, storing.assembled.lying)
    memory = RepairMemory(base.path / "repair.msgpack")
    sight = RepairSight(me, swarm, transfer, storing.locator, config.gone_after, time.monotonic, time.time)
    settings = settings_for(config.gone_after, config.repair_bandwidth)
    hands = HandOver(me, swarm, transfer, book, keeper)
    widener = Widener(me, swarm, transfer, storing.locator, storing.assembler, storing.placer, storing.reuser, keeper)
    return Upkeep(
        Repairs(sight, transfer, keeper, work, memory, base.executor, settings),
        hands,
        Rebalancer(storing.view, swarm, transfer, hands),
        LeaseRenewer(me, swarm, book),
        widener,
    )
