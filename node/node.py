"""One node: its parts, built without I/O, started in order, stopped in reverse."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from erasure.placement import Candidate, domain_of
from node.account_methods import AccountMethods
from node.accounts_setup import announced_urls, make_access
from node.assemble import Assembler
from node.assembled_cache import AssembledCache
from node.audit import Auditor
from node.audit_desk import AuditDesk
from node.audit_tally import AuditTally
from node.blobs import BlobServer
from node.block_list import BlockList
from node.callbacks import NodeCallbacks
from node.classify import Classifier
from node.compile_layers import LayerCompiler
from node.compiled_cache import CompiledCache
from node.config import NodeConfig, split_address
from node.convert_gguf import PREFIX, GgufConverter
from node.data_dir import DataDir
from node.drain import Drainer
from node.embed import Embedder
from node.encode_texts import TextEncoder
from node.engines import Engines
from node.evidence_store import EvidenceStore
from node.explain import Explainer
from node.fetch import Fetcher
from node.generate import Generator
from node.grant_book import GrantBook
from node.grant_desk import DeskConfig, GrantDesk
from node.hand_over import HandOver
from node.http.app import HttpServer
from node.http_setup import certificate_fingerprint, http_settings, tls_context
from node.identity import Identity
from node.keep_holdings import HoldingKeeper
from node.kept_prefixes import KeptPrefixes
from node.locate import Locator
from node.machine import VERSION, advertised_hosts, default_memory, machine_name
from node.model_list import ModelList
from node.network.certificate import make_certificate
from node.network.directory import Directory
from node.network.host import LibP2PNetwork
from node.node_gateway import NodeGateway
from node.node_metrics import register_gauges
from node.owner import OwnerServer
from node.owner_methods import OwnerMethods
from node.owner_space import SpaceMethods
from node.place import Placer
from node.placement_view import PlacementView, ip_addresses
from node.private.vault import Vault
from node.probe import Probe
from node.publish import Publisher
from node.publishing_setup import make_publishing
from node.put_desk import PutDesk
from node.rebalancer import Rebalancer
from node.renew_leases import LeaseRenewer
from node.repair import Repairs, settings_for
from node.repair_memory import RepairMemory
from node.repair_sight import RepairSight
from node.repair_work import RepairWork
from node.report import Reporter
from node.reuse import Reuser
from node.route import Router
from node.serve_layers import LayerServer
from node.serve_stage import StageServer
from node.stage_audit import StageAuditor
from node.stage_audit_report import StageAuditReport
from node.stage_room import StageRoom
from node.standby import StandBys
from node.step_links import LinkServer
from node.steps import Steps
from node.swarm.membership import Membership
from node.swarm.own import SwarmConfig
from node.swarm.state import StateFile, fresh_state
from node.swarm.supervisor import Supervisor
from node.traffic import CountedNetwork
from node.transfer.jobs import TransferConfig
from node.transfer.remote import Transfer
from node.turn import Turn
from node.unfinished import Unfinished
from node.watchdog import Watchdog
from node.widen import Widener
from node.worker import Worker
from node.worker_pulse import WorkerPulse
from protocol.errors import MfError
from protocol.ids import ModelId
from protocol.messages import AUDIT_PROTOCOL, BLOB_PROTOCOL, DIRECT_PROTOCOL, GRANT_PROTOCOL, SESSION_PROTOCOL, STEP_PROTOCOL
from protocol.prints import seal_prints
from runtime.expectation import Paces
from runtime.short_slice import ask_short_slice

log = logging.getLogger(__name__)
RENEW_SPACE = 30.0
FIGURES_EVERY = 5.0
_HASH_NICE = 10


class Node:
    def __init__(self, config: NodeConfig, identity: Identity, data: DataDir, stop: Callable[[], None]) -> None:
        self._config = config
        self._identity = identity
        self._data = data
        self._executor = ThreadPoolExecutor(2, "hash", initializer=_step_back)
        self._supervisor = Supervisor()
        self._watchdog = Watchdog()
        self._network = LibP2PNetwork(identity.key, list(config.listen))
        self._directory = Directory(self._network)
        state = StateFile(data.path / "swarm.msgpack")
        self._swarm = Membership(
            identity.key,
            self._network,
            self._directory,
            SwarmConfig(config.label, config.lend, VERSION, machine_name(), config.operator, config.region),
            state.load() or fresh_state(secrets.token_bytes(32)),
            state.save,
        )
        tls_key, tls_cert, self._tls = make_certificate(identity.key)
        self._callbacks = NodeCallbacks(self._swarm)
        self._transfer = Transfer(
            TransferConfig(
                data_dir=str(data.path / "store"),
                listen=config.transfer,
                peer_id=identity.peer_id,
                signing_key=identity.seed,
                tls_key=tls_key,
                tls_cert=tls_cert,
                quota=config.storage,
            ),
            self._callbacks,
        )
        self._turn, memory = Turn(), config.max_memory or default_memory()
        self._worker = Worker(
            data.path / "scratch",
            threads=os.cpu_count() or 1,
            memory=memory,
            reuse=config.reuse,
            device=config.device,
            turn=self._turn,
            spare=config.spare_worker,
        )
        self._compiler = LayerCompiler(self._worker, CompiledCache(data.path / "compiled"), data.path / "scratch")
        if config.compile == "background":
            self._worker.on_loaded = self._compiler.loaded
        self._build_verbs(config, identity, stop)

    def _build_verbs(self, config: NodeConfig, identity: Identity, stop: Callable[[], None]) -> None:
        swarm, transfer, network = self._swarm, self._transfer, self._network
        self._desk_config = DeskConfig(urls=[], tls=self._tls)
        self._blocks = BlockList(self._data.path)
        self._puts = PutDesk(network, swarm, transfer, config.lend in ("storage", "both"), self._blocks)
        desk = GrantDesk(identity.key, network, swarm, transfer, self._desk_config, self._puts)
        counted = CountedNetwork(network)
        self._book = GrantBook(network, swarm, desk)
        self._locator = Locator(counted, swarm, transfer, self._executor)
        assembler = Assembler(swarm, transfer, self._book, self._executor, self._data.path)
        domain = domain_of(identity.peer_id, [], machine_name())
        me = Candidate(identity.peer_id, domain, float(config.storage), config.operator, distance=0.0, region=config.region)
        self._view = PlacementView(me, swarm, assembler.speed_of)
        reuser = Reuser(identity.peer_id, swarm, transfer, self._book, self._locator, assembler)
        placer = Placer(self._view, swarm, transfer, self._book, reuser)
        self._assembled = AssembledCache(assembler, self._locator, self._executor, self._data.path, config.storage)
        self._keeper = HoldingKeeper(swarm, transfer, self._locator, self._assembled.whole)
        self._assembled.on_change(self._keeper.changed)
        self._callbacks.connect(self._book, self._keeper, self._transfer_ended)
        self._locator.on_forget(self._forgotten)
        engines = Engines(config.engine, self._data.path)
        room = StageRoom(self._worker, self._assembled, config.max_memory or default_memory(), self._assembled.used, engines)
        room.compiled = self._compiler.said.get
        self._steps = Steps(network, self._turn)
        self._links = LinkServer(self._steps.take)
        self._stages = server = StageServer(network, self._steps, self._locator, room, self._worker, config.lend in ("compute", "both"))
        server.seal = partial(seal_prints, identity.key)
        server.prefer(swarm.trusted)
        router = Router(identity.peer_id, swarm, room, config.privacy, config.ends, config.round_trip_budget, server.figures.peers)
        self._layers = LayerServer(identity.peer_id, swarm, self._locator, room, self._worker, self._keeper, server.figures.own)
        paces = Paces(identity.peer_id)
        explainer = Explainer(identity.peer_id, swarm, self._locator, router, paces, room)
        self._standbys = StandBys(network, router, server)
        generator = Generator(counted, swarm, self._locator, router, room, self._worker, self._steps, server, self._standbys, paces)
        self._evidence = EvidenceStore(self._data.path, identity.key)
        tally = AuditTally(lambda what, name, number: self._http.metrics.stage_audit(what, name, number))
        self._stage_auditor = StageAuditor(network, swarm, router, self._steps, server, tally, self._evidence)
        generator.auditor = self._stage_auditor if config.audits else None
        generator.prefixes = KeptPrefixes(secrets.token_bytes(32)) if config.reuse else None
        self._unfinished = Unfinished()
        reporter = Reporter(identity.peer_id, VERSION, swarm, transfer, self._locator, placer, self._unfinished)
        converter = GgufConverter(self._data.path)
        publisher = Publisher(swarm, transfer, self._locator, placer, reuser, converter, self._unfinished, self._executor, config.label)
        fetcher = Fetcher(swarm, self._locator, assembler, self._executor)
        work = RepairWork(swarm, transfer, self._book, placer, self._assembled.lying)
        memory = RepairMemory(self._data.path / "repair.msgpack")
        sight = RepairSight(identity.peer_id, swarm, transfer, self._locator, config.gone_after, time.monotonic, time.time)
        settings = settings_for(config.gone_after, config.repair_bandwidth)
        self._repairs = Repairs(sight, transfer, self._keeper, work, memory, self._executor, settings)
        self._hands = HandOver(identity.peer_id, swarm, transfer, self._book, self._keeper)
        self._rebalancer = Rebalancer(self._view, swarm, transfer, self._hands)
        self._renewer = LeaseRenewer(identity.peer_id, swarm, self._book)
        self._widener = Widener(identity.peer_id, swarm, transfer, self._locator, assembler, placer, reuser, self._keeper)
        self._probe = Probe(swarm, transfer, self._worker, room, lambda: self._desk_config.urls[0], self._tls)
        encoder = TextEncoder(swarm, self._locator, room, self._worker)
        listed = ModelList(swarm, reporter)
        swarm.on_change(listed.changed)
        gateway = NodeGateway(
            reporter,
            listed,
            generator,
            swarm,
            self._locator,
            Embedder(encoder),
            Classifier(identity.peer_id, encoder),
            self._probe,
            explainer,
            config.precision,
            lambda: sum(group.survives < 0 for group in self._repairs.groups),
        )
        vault = Vault(identity.peer_id, identity.seed, swarm, self._executor)
        swarm.on_change(vault.changed)
        vault.on_lost(self._locator.forget)
        self._locator.opener = vault
        audits = StageAuditReport(self._evidence, tally)
        self._access = make_access(self._data.path, identity.key, swarm, audits, config.allow, config.deny)
        self._publishing = make_publishing(
            self._data.path,
            config.storage,
            config.compression,
            config.webhook_targets,
            self._access.accounts,
            swarm,
            vault,
            reporter,
            publisher,
            self._unfinished,
            self._locator,
            self._assembled,
            room,
            generator,
            self._executor,
        )
        self._http = HttpServer(gateway, http_settings(config), self._access, self._publishing)
        self.http_fingerprint: str | None = None
        register_gauges(self._http.metrics, swarm, room, self._repairs)
        server.figures.observe = self._http.metrics.step
        self._auditor = Auditor(network, swarm, transfer, self._locator, lambda verdict: self._http.metrics.audit(verdict.value))
        methods = OwnerMethods(
            swarm, transfer, self._locator, publisher, fetcher, generator, explainer, reporter, self._keeper, config.compression, stop
        )
        drainer = Drainer(self._view, transfer, self._puts, self._hands, self._tell_space)
        space = SpaceMethods(swarm, transfer, self._locator, self._blocks, self._hands, drainer, self._rebalancer, stop)
        self._owner = OwnerServer(self._data.path, methods.table() | space.table() | AccountMethods(self._access).table())
        network.serve(BLOB_PROTOCOL, BlobServer(transfer).handle)
        network.serve(GRANT_PROTOCOL, desk.handle)
        network.serve(AUDIT_PROTOCOL, AuditDesk(identity.key, transfer, time.monotonic).handle)
        network.serve(SESSION_PROTOCOL, server.handle)
        network.serve(STEP_PROTOCOL, self._steps.handle)
        network.serve(DIRECT_PROTOCOL, self._links.handle)

    async def start(self) -> None:
        """Ready when it returns: listening, in its swarms, and an end-to-end probe has passed."""
        started = time.monotonic()
        self._clean()
        self._blocks.load()
        self._access.rules.load()
        self._watchdog.start()
        ask_short_slice(os.nice(0))
        await self._transfer.start()
        if self._config.device != "cpu":
            await self._worker.start()  # says now whether there is such a device, and how much memory it has
        await self._assembled.open()
        await self._evidence.open()
        await self._network.start()
        host, port = split_address(self._config.transfer)
        await self._links.start(host, port + 1 if port else 0)
        hosts = advertised_hosts(host, ip_addresses(self._network.addresses()))
        places = [f"{host}:{self._transfer.port}" for host in hosts]
        self._desk_config.urls[:] = [f"https://{place}" for place in places]
        self._swarm.set_data_plane(places, self._tls)
        await self._swarm.start()
        await self._tell_space()
        self._supervisor.spawn(self._keeper.run(), "holdings")
        self._supervisor.spawn(WorkerPulse(self._worker).run(), "worker's pulse")
        self._supervisor.spawn(self._renew(), "renewals")
        self._supervisor.spawn(self._worker.refresh(FIGURES_EVERY), "figures of the worker")
        self._supervisor.spawn(self._widener.run(), "widening")
        self._supervisor.spawn(self._renewer.run(), "leases")
        self._supervisor.spawn(self._rebalancer.run(), "rebalancing")
        self._supervisor.spawn(self._assembled.run(), "loading ahead")
        self._supervisor.spawn(self._repairs.run(), "repair")
        if self._config.audits:
            self._supervisor.spawn(self._auditor.run(), "audits")
        if self._config.lend in ("compute", "both") and self._config.serve_layers:
            self._supervisor.spawn(self._layers.run(), "layers served")
        self._supervisor.spawn(self._directory.maintain(), "directory")
        await self._join()
        await self._owner.start()
        await self._open_http(hosts)
        outcome = await self._probe.once()
        if not outcome.passed:
            raise MfError(f"the node isn't ready: {outcome.fault}")
        self._supervisor.spawn(self._probe.run(), "probe")
        gc.collect()
        gc.freeze()  # what is there now stays: a look through it in the middle of a step would take milliseconds
        fields = {"peer": self._identity.peer_id, "http": self.http_url, "seconds": round(time.monotonic() - started, 3)}
        log.info("ready", extra={"event": "ready", "fields": fields})

    async def stop(self) -> None:
        await self._stages.leave()
        await self._owner.close()
        await self._http.stop()
        await self._publishing.uploads.close()
        await self._access.close()
        await self._standbys.close()
        await self._unfinished.close()
        await self._supervisor.stop()
        await self._stage_auditor.close()
        self._evidence.close()
        steps = asyncio.gather(self._steps.close(), self._links.stop(), return_exceptions=True)
        parts = (self._worker.stop(), self._compiler.close(), self._assembled.close(), self._swarm.stop(), self._book.close(), steps)
        await asyncio.gather(*parts, return_exceptions=True)
        await asyncio.gather(self._network.stop(), self._transfer.stop(), return_exceptions=True)
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._watchdog.stop()
        log.info("stopped", extra={"event": "stopped"})

    async def _open_http(self, hosts: list[str]) -> None:
        """Accounts, then the listener; other nodes are told where it answers, if they could reach it."""
        await self._access.journal.open()
        await self._access.accounts.open()
        await self._publishing.owned.load()
        await self._publishing.sharing.load()
        await self._publishing.uploads.open()
        self._supervisor.spawn(self._access.accounts.usage.run(), "usage")
        self._supervisor.spawn(self._publishing.uploads.run(), "old uploads")
        self._supervisor.spawn(self._publishing.webhooks.run(), "webhooks")
        context = await asyncio.get_running_loop().run_in_executor(self._executor, tls_context, self._data.path, self._config)
        self.http_fingerprint = certificate_fingerprint(self._data.path) if context else None
        await self._http.start(context)
        scheme, host = self._http.scheme, split_address(self._config.http)[0]
        self._swarm.set_http(announced_urls(scheme, host, self._http.port, hosts))
        await self._tell_space()

    @property
    def http_url(self) -> str:
        return self._http.url

    def ticket(self) -> str:
        return self._swarm.ticket()

    def _forgotten(self, model: ModelId) -> None:
        self._supervisor.spawn(self._assembled.forget(model), "forgetting what was assembled")

    def _transfer_ended(self) -> None:
        self._supervisor.spawn(self._transfer_again(), "transfer restart")

    async def _transfer_again(self) -> None:
        """Starts the data plane anew, with growing pauses, until it stands."""
        pause = 0.1
        while True:
            try:
                await self._transfer.restart()
                return
            except MfError as error:
                log.error("the transfer process doesn't start: %s", error, extra={"event": "transfer_failed"})
            await asyncio.sleep(pause)
            pause = min(2 * pause, 30.0)

    async def _join(self) -> None:
        """Tickets given at start; one that leads nowhere now is said, not fatal: its peers may come back."""
        for ticket in self._config.join:
            try:
                await self._swarm.join(ticket)
            except MfError as error:
                if error.status < 500:
                    raise
                log.warning("a ticket's peers can't be reached now: %s", error, extra={"event": "join_failed"})

    async def _tell_space(self) -> None:
        space = await self._transfer.space()
        self._view.tell_room(space.used, space.quota)
        lends_compute = self._config.lend in ("compute", "both")
        free = max(0, min(space.quota - space.used, space.free)) if self._puts.takes else None
        memory = (self._config.max_memory or default_memory()) if lends_compute else None
        await self._swarm.put_node(free, memory, space.quota if self._puts.takes else None)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SPACE)
            try:
                await self._tell_space()
            except MfError as error:
                log.warning("the space lent wasn't told: %s", error)

    def _clean(self) -> None:
        """What a killed run left behind."""
        shutil.rmtree(self._data.path / "scratch", ignore_errors=True)
        for left in self._data.path.glob("assemble-*"):
            left.unlink(missing_ok=True)
        for left in self._data.path.glob(f"{PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)


def _step_back() -> None:
    """In a thread: hashing comes after the steps of replies, which this process passes on."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _HASH_NICE)
