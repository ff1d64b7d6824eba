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

from node.account_methods import AccountMethods
from node.accounts_setup import announced_urls, make_access
from node.audit import Auditor
from node.audit_desk import AuditDesk
from node.audit_tally import AuditTally
from node.base import Base
from node.blobs import BlobServer
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
from node.fetch import Fetcher
from node.http.app import HttpServer
from node.http_setup import certificate_fingerprint, http_settings, tls_context
from node.identity import Identity
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
from node.placement_view import ip_addresses
from node.private.vault import Vault
from node.probe import Probe
from node.publish import Publisher
from node.publishing_setup import make_publishing
from node.report import Reporter
from node.running_setup import make_running
from node.stage_audit_report import StageAuditReport
from node.storing_setup import make_storing
from node.swarm.membership import Membership
from node.swarm.own import SwarmConfig
from node.swarm.state import StateFile, fresh_state
from node.swarm.supervisor import Supervisor
from node.transfer.jobs import TransferConfig
from node.transfer.remote import Transfer
from node.turn import Turn
from node.unfinished import Unfinished
from node.upkeep_setup import make_upkeep
from node.watchdog import Watchdog
from node.worker import Worker
from node.worker_pulse import WorkerPulse
from protocol.errors import MfError
from protocol.ids import ModelId
from protocol.messages import AUDIT_PROTOCOL, BLOB_PROTOCOL, DIRECT_PROTOCOL, GRANT_PROTOCOL, SESSION_PROTOCOL, STEP_PROTOCOL
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
        swarm, transfer, network, path = self._swarm, self._transfer, self._network, self._data.path
        base = Base(config, identity, path, network, swarm, transfer, self._worker, self._executor, self._tls)
        self._storing = storing = make_storing(base)
        self._callbacks.connect(storing.book, storing.keeper, self._transfer_ended)
        storing.locator.on_forget(self._forgotten)
        tally = AuditTally(lambda what, name, number: self._http.metrics.stage_audit(what, name, number))
        self._running = running = make_running(base, storing, self._turn, self._compiler.said.get, tally)
        self._upkeep = make_upkeep(base, storing)
        self._unfinished = Unfinished()
        reporter = Reporter(identity.peer_id, VERSION, swarm, transfer, storing.locator, storing.placer, self._unfinished)
        publisher = Publisher(
            swarm, transfer, storing.locator, storing.placer, storing.reuser, GgufConverter(path), self._unfinished, self._executor,
            config.label,
        )  # fmt: skip
        vault = Vault(identity.peer_id, identity.seed, swarm, self._executor)
        swarm.on_change(vault.changed)
        vault.on_lost(storing.locator.forget)
        storing.locator.opener = vault
        self._build_http(base, vault, reporter, publisher, tally)
        self._build_owner(base, reporter, publisher, stop)
        network.serve(BLOB_PROTOCOL, BlobServer(transfer).handle)
        network.serve(GRANT_PROTOCOL, storing.desk.handle)
        network.serve(AUDIT_PROTOCOL, AuditDesk(identity.key, transfer, time.monotonic).handle)
        network.serve(SESSION_PROTOCOL, running.stages.handle)
        network.serve(STEP_PROTOCOL, running.steps.handle)
        network.serve(DIRECT_PROTOCOL, running.links.handle)

    def _build_http(self, base: Base, vault: Vault, reporter: Reporter, publisher: Publisher, tally: AuditTally) -> None:
        config, swarm, storing, running = base.config, base.swarm, self._storing, self._running
        self._probe = Probe(swarm, base.transfer, base.worker, running.room, lambda: storing.desk_config.urls[0], base.tls)
        encoder = TextEncoder(swarm, storing.locator, running.room, base.worker)
        listed = ModelList(swarm, reporter)
        swarm.on_change(listed.changed)
        gateway = NodeGateway(
            reporter,
            listed,
            running.generator,
            swarm,
            storing.locator,
            Embedder(encoder),
            Classifier(base.identity.peer_id, encoder),
            self._probe,
            running.explainer,
            config.precision,
            lambda: sum(group.survives < 0 for group in self._upkeep.repairs.groups),
        )
        audits = StageAuditReport(running.evidence, tally)
        self._access = make_access(base.path, base.identity.key, swarm, audits, config.allow, config.deny)
        self._publishing = make_publishing(
            base.path,
            config.storage,
            config.compression,
            config.webhook_targets,
            self._access.accounts,
            swarm,
            vault,
            reporter,
            publisher,
            self._unfinished,
            storing.locator,
            storing.assembled,
            running.room,
            running.generator,
            base.executor,
        )
        self._http = HttpServer(gateway, http_settings(config), self._access, self._publishing)
        self.http_fingerprint: str | None = None
        register_gauges(self._http.metrics, swarm, running.room, self._upkeep.repairs)
        running.stages.figures.observe = self._http.metrics.step
        self._auditor = Auditor(
            base.network, swarm, base.transfer, storing.locator, lambda verdict: self._http.metrics.audit(verdict.value)
        )

    def _build_owner(self, base: Base, reporter: Reporter, publisher: Publisher, stop: Callable[[], None]) -> None:
        swarm, transfer, storing, running, upkeep = base.swarm, base.transfer, self._storing, self._running, self._upkeep
        fetcher = Fetcher(swarm, storing.locator, storing.assembler, base.executor)
        methods = OwnerMethods(
            swarm, transfer, storing.locator, publisher, fetcher, running.generator, running.explainer, reporter, storing.keeper,
            base.config.compression, stop,
        )  # fmt: skip
        drainer = Drainer(storing.view, transfer, storing.puts, upkeep.hands, self._tell_space)
        space = SpaceMethods(swarm, transfer, storing.locator, storing.blocks, upkeep.hands, drainer, upkeep.rebalancer, stop)
        self._owner = OwnerServer(base.path, methods.table() | space.table() | AccountMethods(self._access).table())

    async def start(self) -> None:
        """Ready when it returns: listening, in its swarms, and an end-to-end probe has passed."""
        started = time.monotonic()
        self._clean()
        self._storing.blocks.load()
        self._access.rules.load()
        self._watchdog.start()
        ask_short_slice(os.nice(0))
        await self._transfer.start()
        if self._config.device != "cpu":
            await self._worker.start()  # says now whether there is such a device, and how much memory it has
        await self._storing.assembled.open()
        await self._running.evidence.open()
        await self._network.start()
        host, port = split_address(self._config.transfer)
        await self._running.links.start(host, port + 1 if port else 0)
        hosts = advertised_hosts(host, ip_addresses(self._network.addresses()))
        places = [f"{host}:{self._transfer.port}" for host in hosts]
        self._storing.desk_config.urls[:] = [f"https://{place}" for place in places]
        self._swarm.set_data_plane(places, self._tls)
        await self._swarm.start()
        await self._tell_space()
        self._supervisor.spawn(self._storing.keeper.run(), "holdings")
        self._supervisor.spawn(WorkerPulse(self._worker, self._transfer.give_way).run(), "worker's pulse")
        self._supervisor.spawn(self._renew(), "renewals")
        self._supervisor.spawn(self._worker.refresh(FIGURES_EVERY), "figures of the worker")
        self._supervisor.spawn(self._upkeep.widener.run(), "widening")
        self._supervisor.spawn(self._upkeep.renewer.run(), "leases")
        self._supervisor.spawn(self._upkeep.rebalancer.run(), "rebalancing")
        self._supervisor.spawn(self._storing.assembled.run(), "loading ahead")
        self._supervisor.spawn(self._upkeep.repairs.run(), "repair")
        if self._config.audits:
            self._supervisor.spawn(self._auditor.run(), "audits")
        if self._config.lend in ("compute", "both") and self._config.serve_layers:
            self._supervisor.spawn(self._running.layers.run(), "layers served")
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
        await self._running.stages.leave()
        await self._owner.close()
        await self._http.stop()
        await self._publishing.uploads.close()
        await self._access.close()
        await self._running.standbys.close()
        await self._unfinished.close()
        await self._supervisor.stop()
        await self._running.auditor.close()
        self._running.evidence.close()
        storing, running = self._storing, self._running
        steps = asyncio.gather(running.steps.close(), running.links.stop(), return_exceptions=True)
        worker, compiler = self._worker.stop(), self._compiler.close()
        parts = (worker, compiler, storing.assembled.close(), self._swarm.stop(), storing.book.close(), steps)
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
        self._supervisor.spawn(self._storing.assembled.forget(model), "forgetting what was assembled")

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
        self._storing.view.tell_room(space.used, space.quota)
        lends_compute = self._config.lend in ("compute", "both")
        free = max(0, min(space.quota - space.used, space.free)) if self._storing.puts.takes else None
        memory = (self._config.max_memory or default_memory()) if lends_compute else None
        await self._swarm.put_node(free, memory, space.quota if self._storing.puts.takes else None)

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
