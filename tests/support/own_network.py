"""A network namespace for a test: a program in it has a machine's network to itself, with public-looking addresses that lead nowhere.

`run` starts the program there (`unshare`: as root, else with a user namespace, else through sudo); `bring_up`, called by that program,
gives it loopback and the addresses. They lie on the loopback device: what listens on one of them isn't on loopback for the node,
and kernels without veth or dummy devices do.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.support.processes import TOP, environment

_SET_ADDRESS, _SET_FLAGS = 0x8916, 0x8914
_UP = 0x1
_OWN, _OUTSIDE = "/proc/self/ns/net", "OUTSIDE_NETWORK"
_WAYS = (["unshare", "--net"], ["unshare", "--user", "--map-root-user", "--net"], ["sudo", "-n", "--preserve-env", "unshare", "--net"])


def run(module: str, *arguments: str, timeout: float) -> str:
    """What `python -m module` says in a namespace of its own. Skips (so fails, unless it is named) where the machine gives none."""
    way = next((way for way in _WAYS if _works(way)), None)
    if way is None:
        pytest.skip("this machine gives no network namespace: not as root, not by a user namespace, not by sudo")
    line = [*way, sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=TOP,
        env=environment(**{_OUTSIDE: os.readlink(_OWN)}),
    )
    try:
        said, wrong = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()
        said, wrong = process.communicate(timeout=20.0)
        raise AssertionError(f"{module} wasn't done in {timeout:g} s\n{wrong[-3000:]}") from None
    assert process.returncode == 0, f"{module}: exit {process.returncode}\n{wrong[-5000:]}"
    return said


def _works(way: Sequence[str]) -> bool:
    try:
        return subprocess.run([*way, "true"], capture_output=True, timeout=10.0, stdin=subprocess.DEVNULL).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def bring_up(*addresses: str) -> None:
    """Loopback and these IPv4 addresses; only for a program in a namespace of its own, for it changes the network it is in."""
    assert os.readlink(_OWN) != os.environ[_OUTSIDE], "this is the machine's own network"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP))
        for number, address in enumerate(addresses, 1):
            told = struct.pack("16sHH4s8x", f"lo:{number}".encode(), socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(control, _SET_ADDRESS, told)
