"""What stores shards, finds models and makes groups of them, put together."""

from __future__ import annotations

from dataclasses import dataclass

from erasure.placement import Candidate, domain_of
from node.assemble import Assembler
from node.assembled_cache import AssembledCache
from node.base import Base
from node.block_list import BlockList
from node.grant_book import GrantBook
from node.grant_desk import DeskConfig, GrantDesk
from node.keep_holdings import HoldingKeeper
from node.locate import Locator
from node.machine import machine_name
from node.place import Placer
from node.placement_view import PlacementView
from node.put_desk import PutDesk
from node.reuse import Reuser
from node.traffic import CountedNetwork


@dataclass
class Storing:
    blocks: BlockList
    puts: PutDesk
    desk_config: DeskConfig
    desk: GrantDesk
    counted: CountedNetwork
    book: GrantBook
    locator: Locator
    assembler: Assembler
    view: PlacementView
    reuser: Reuser
    placer: Placer
    assembled: AssembledCache
    keeper: HoldingKeeper


def make_storing(base: Base) -> Storing:
    config, me, swarm, transfer, network = base.config, base.identity.peer_id, base.swarm, base.transfer, base.network
    desk_config, blocks = DeskConfig(urls=[], tls=base.tls), BlockList(base.path)
    puts = PutDesk(network, swarm, transfer, config.lend in ("storage", "both"), blocks)
    desk = GrantDesk(base.identity.key, network, swarm, transfer, desk_config, puts)
    counted = CountedNetwork(network)
    book = GrantBook(network, swarm, desk)
    locator = Locator(counted, swarm, transfer, base.executor)
    assembler = Assembler(swarm, transfer, book, base.executor, base.path)
    domain = domain_of(me, [], machine_name())
    own = Candidate(me, domain, float(config.storage), config.operator, distance=0.0, region=config.region)
    view = PlacementView(own, swarm, assembler.speed_of)
    reuser = Reuser(me, swarm, transfer, book, locator, assembler)
    placer = Placer(view, swarm, transfer, book, reuser)
    assembled = AssembledCache(assembler, locator, base.executor, base.path, config.storage)
    keeper = HoldingKeeper(swarm, transfer, locator, assembled.whole)
    assembled.on_change(keeper.changed)
    return Storing(blocks, puts, desk_config, desk, counted, book, locator, assembler, view, reuser, placer, assembled, keeper)
