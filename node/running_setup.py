"""What runs models here and through others, put together."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from node.audit_tally import AuditTally
from node.base import Base
from node.engines import Engines
from node.evidence_store import EvidenceStore
from node.explain import Explainer
from node.generate import Generator
from node.kept_prefixes import KeptPrefixes
from node.lanes import Lanes
from node.machine import default_memory
from node.route import Router
from node.serve_layers import LayerServer
from node.serve_stage import StageServer
from node.stage_audit import StageAuditor
from node.stage_room import StageRoom
from node.standby import StandBys
from node.step_links import LinkServer
from node.steps import Steps
from node.storing_setup import Storing
from node.turn import Turn
from protocol.prints import seal_prints
from runtime.expectation import Paces


@dataclass
class Running:
    room: StageRoom
    steps: Steps
    links: LinkServer
    stages: StageServer
    layers: LayerServer
    explainer: Explainer
    standbys: StandBys
    generator: Generator
    evidence: EvidenceStore
    auditor: StageAuditor


def make_running(base: Base, storing: Storing, turn: Turn, compiled: Callable[[str], str | None], tally: AuditTally) -> Running:
    """`compiled` tells what came of compiling a stage's layers."""
    config, me, swarm, network, worker, locator = base.config, base.identity.peer_id, base.swarm, base.network, base.worker, storing.locator
    engines = Engines(config.engine, base.path)
    room = StageRoom(worker, storing.assembled, config.max_memory or default_memory(), storing.assembled.used, engines)
    room.compiled = compiled
    steps = Steps(network, turn)
    stages = StageServer(network, steps, locator, room, worker, config.lend in ("compute", "both"), Lanes(network, worker))
    stages.seal = partial(seal_prints, base.identity.key)
    stages.prefer(swarm.trusted)
    router = Router(me, swarm, room, config.privacy, config.ends, config.round_trip_budget, stages.figures.peers)
    layers = LayerServer(me, swarm, locator, room, worker, storing.keeper, stages.figures.own)
    paces = Paces(me)
    standbys = StandBys(network, router, stages)
    generator = Generator(storing.counted, swarm, locator, router, room, worker, steps, stages, standbys, paces)
    generator.prefixes = KeptPrefixes(secrets.token_bytes(32)) if config.reuse else None
    evidence = EvidenceStore(base.path, base.identity.key)
    auditor = StageAuditor(network, swarm, router, steps, stages, tally, evidence)
    generator.auditor = auditor if config.audits else None
    explainer = Explainer(me, swarm, locator, router, paces, room)
    return Running(room, steps, LinkServer(steps.take), stages, layers, explainer, standbys, generator, evidence, auditor)
