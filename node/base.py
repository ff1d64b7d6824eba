"""What all the rest of a node is put together from."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from node.config import NodeConfig
from node.identity import Identity
from node.network.host import LibP2PNetwork
from node.swarm.membership import Membership
from node.transfer.remote import Transfer
from node.worker import Worker


@dataclass(frozen=True)
class Base:
    """`path`: the data directory; `executor` hashes and writes; `tls`: the data plane's certificate
    by its SHA-256 (32 bytes)."""

    config: NodeConfig
    identity: Identity
    path: Path
    network: LibP2PNetwork
    swarm: Membership
    transfer: Transfer
    worker: Worker
    executor: Executor
    tls: bytes
