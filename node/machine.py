"""What this machine is, for the node's records: its name among machines, its addresses, its memory."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from protocol.ids import digest


def _version() -> str:
    try:
        return version("modelfloat")
    except PackageNotFoundError:
        return "0.1.0"


VERSION = _version()


@cache
def machine_name() -> str | None:
    """A stable name that says only "the same machine": a digest of the system's machine id. None where there is none."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            text = Path(path).read_bytes().strip()
        except OSError:
            continue
        if text:
            return digest(b"mf/machine/1" + text).hex()[:16]
    return None


def default_memory() -> int:
    """Bytes for models where the owner set no bound: half of what is available now."""
    return available_memory() // 2


def available_memory() -> int:
    """Bytes that programs could still take now, as the kernel estimates it; 2 GiB where it doesn't say."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 2 << 30


def advertised_hosts(listen_host: str, network_hosts: Sequence[str]) -> list[str]:
    """Hosts under which the data plane is reached: itself, or where every interface is listened on, the network's addresses."""
    try:
        everywhere = ipaddress.ip_address(listen_host).is_unspecified
    except ValueError:
        return [listen_host]
    hosts = list(dict.fromkeys(network_hosts)) if everywhere else [listen_host]
    return [f"[{host}]" if ":" in host else host for host in hosts]
