"""What the sandbox forbids, tried from inside, in a process of its own."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import sandbox

INSIDE = """
import json, os, socket, sys, ctypes
from pathlib import Path
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from runtime import sandbox

scratch, secret, parent = sys.argv[1], sys.argv[2], int(sys.argv[3])
door = socket.create_server(("127.0.0.1", 0))
lane = socket.create_connection(door.getsockname())
taken, _ = door.accept()
report = sandbox.enter(scratch, 256 << 20)

def attempt(what):
    try:
        what()
    except (OSError, MemoryError, RuntimeError) as error:
        return type(error).__name__
    return "done"

def big():
    torch.zeros(4 << 30, dtype=torch.uint8)

results = {
    "passwd": attempt(lambda: open("/etc/passwd").read()),
    "secret": attempt(lambda: open(secret).read()),
    "environ": attempt(lambda: open(f"/proc/{parent}/environ", "rb").read()),
    "write prefix": attempt(lambda: open(os.path.join(sys.prefix, "x-sandbox"), "w")),
    "inet": attempt(lambda: socket.socket(socket.AF_INET)),
    "inet6": attempt(lambda: socket.socket(socket.AF_INET6)),
    "netlink": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "exec": attempt(lambda: os.execv("/bin/true", ["true"])),
    "fork": attempt(os.fork),
    "spawn": attempt(lambda: os.posix_spawn("/bin/true", ["true"], {})),
    "kill": attempt(lambda: os.kill(parent, 0)),
    "memory": attempt(big),
    "scratch": attempt(lambda: Path(scratch, "a").write_text("x")),
    "scratch read": attempt(lambda: Path(scratch, "a").read_text()),
    "scratch remove": attempt(lambda: Path(scratch, "a").unlink()),
    "unix": attempt(lambda: socket.socketpair()),
    "connect": attempt(lambda: lane.connect(("127.0.0.1", 9))),
    "connect unix": attempt(lambda: socket.socket(socket.AF_UNIX).connect(os.path.join(scratch, "door"))),
    "bind": attempt(lambda: socket.socket(socket.AF_UNIX).bind(os.path.join(scratch, "own"))),
    "listen": attempt(door.listen),
    "accept": attempt(door.accept),
    "fast open": attempt(lambda: lane.sendto(b"x", 0x20000000, ("127.0.0.1", 9))),
    "fast open by sendmsg": attempt(lambda: lane.sendmsg([b"x"], (), 0x20000000, ("127.0.0.1", 9))),
    "send": attempt(lambda: lane.send(b"x") == 1 and taken.recv(1) == b"x"),
    "matmul": attempt(lambda: torch.randn(512, 512) @ torch.randn(512, 512)),
    "lazy import": attempt(lambda: __import__("transformers.models.qwen2")),
    "tokenizer": attempt(lambda: Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")).encode("b")),
}
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
results["ptrace"] = "done" if ptrace(0, 0, 0, 0) == 0 else "OSError"
print(json.dumps({"report": report, "results": results}))
"""


CONNECTING = ("connect", "connect unix", "bind", "listen", "accept", "fast open", "fast open by sendmsg")


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    scratch = tmp_path_factory.mktemp("scratch")
    secret = tmp_path_factory.mktemp("data") / "identity.key"
    secret.write_text("canary")
    top = str(Path(__file__).resolve().parents[2])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": top, "HOME": str(scratch), "TMPDIR": str(scratch), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", INSIDE, str(scratch), str(secret), str(os.getpid())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    out: dict[str, dict[str, str]] = json.loads(done.stdout.strip().splitlines()[-1])
    return out


def expected_off(tried: dict[str, dict[str, str]], feature: str) -> bool:
    """Where the kernel lacks a part, the report must say so; its refusals can't be asked for then."""
    return tried["report"][feature] != "on" and not sandbox.report()[feature].startswith("available")


@pytest.mark.parametrize("what", ["passwd", "secret", "environ", "write prefix"])
def test_files_outside_are_closed(what: str, tried: dict[str, dict[str, str]]) -> None:
    assert tried["results"][what] == "PermissionError" or expected_off(tried, "landlock")


@pytest.mark.parametrize("what", [*("inet", "inet6", "netlink", "exec", "fork", "spawn", "kill", "ptrace"), *CONNECTING])
def test_calls_to_the_outside_are_refused(what: str, tried: dict[str, dict[str, str]]) -> None:
    assert tried["results"][what] in ("PermissionError", "OSError") or expected_off(tried, "seccomp")


def test_memory_beyond_the_budget_is_refused(tried: dict[str, dict[str, str]]) -> None:
    assert tried["results"]["memory"] in ("RuntimeError", "MemoryError")


@pytest.mark.parametrize("what", ["scratch", "scratch read", "scratch remove", "unix", "send", "matmul", "lazy import", "tokenizer"])
def test_what_a_worker_needs_still_works(what: str, tried: dict[str, dict[str, str]]) -> None:
    assert tried["results"][what] == "done"


def test_every_part_is_on_where_the_kernel_has_it(tried: dict[str, dict[str, str]]) -> None:
    offered = sandbox.report()
    for feature in ("landlock", "seccomp", "limits"):
        assert tried["report"][feature] == "on" or not offered[feature].startswith("available")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_jump_of_the_filter_lands_inside(machine: str) -> None:
    program = sandbox._program(machine)
    code = list(struct.iter_unpack("=HBBI", program))
    for index, (_code, yes, no, _constant) in enumerate(code):
        assert index + 1 + max(yes, no) < len(code) + (1 if index == len(code) - 1 else 0)
    assert code[-1][3] == 0x7FFF0000
