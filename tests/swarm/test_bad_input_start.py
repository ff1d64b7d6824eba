"""What keeps a node from starting, or a command from reaching one: a sentence that names the thing, the exit code of its
class, no traceback.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.signing import peer_of
from protocol.ticket import Ticket, TicketPeer, seal_ticket
from tests.support.processes import Swarm, mf_node

pytestmark = pytest.mark.swarm

ANYWHERE = ("--http", "127.0.0.1:0", "--transfer", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0")


def start(data_dir: Path, *options: str) -> tuple[int, dict[str, str]]:
    """Exit code and error of a `run` that can't run."""
    done = mf_node("--data-dir", str(data_dir), "--json", "run", "--log-format", "json", *ANYWHERE, *options, timeout=15.0)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)["error"]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        yield int(other.getsockname()[1])


@pytest.mark.parametrize(
    ("option", "address"), [("--http", "127.0.0.1:{}"), ("--transfer", "127.0.0.1:{}"), ("--listen", "/ip4/127.0.0.1/tcp/{}")]
)
def test_a_port_in_use(tmp_path: Path, taken: int, option: str, address: str) -> None:
    code, error = start(tmp_path / "d", option, address.format(taken))
    assert (code, error["code"]) == (4, "conflict")
    assert str(taken) in error["message"]
    assert option in error["hint"]


def test_a_directory_in_use(calm: Swarm) -> None:
    node = calm.nodes[0]
    code, error = start(node.data_dir)
    assert (code, error["code"]) == (4, "conflict")
    assert str(node.data_dir) in error["message"]
    assert str(node.pid) in error["message"]
    assert node.http("GET", "/health")[0] == 200


def test_a_directory_that_cant_be_written(tmp_path: Path) -> None:
    """Below a file, or in a file system that takes none: also root is refused there."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "d", Path("/proc/mf")):
        code, error = start(path)
        assert (code, error["code"], str(path) in error["message"]) == (2, "bad_request", True), error
        assert "--data-dir" in error["hint"]


def test_a_directory_of_a_newer_format(tmp_path: Path) -> None:
    for below in ("format", "store/format"):
        folder = tmp_path / below.replace("/", "-")
        (folder / below).parent.mkdir(parents=True)
        (folder / below).write_text("99\n")
        code, error = start(folder)
        assert (code, error["code"], "99" in error["message"]) == (4, "conflict", True), error
        assert (folder / below).read_text() == "99\n"


def test_tickets(calm: Swarm, tmp_path: Path) -> None:
    """Broken, changed by one letter, expired, somebody else's: at `run` and at `join`, and never repeated in what is said."""
    good = calm.nodes[0].ticket
    key = Ed25519PrivateKey.generate()
    peer = TicketPeer(peer=peer_of(key), addresses=["/ip4/127.0.0.1/tcp/1"])
    old = seal_ticket(key, Ticket(peers=[peer], trusts=[], expires=int(time.time()) - 3600, swarm=bytes(32)))
    flipped = good[:40] + ("a" if good[40] != "a" else "b") + good[41:]
    for ticket, word in (("mft1nonsense", "ticket"), (flipped, "ticket"), (good[:-5], "ticket"), (old, "expired"), ("x" * 3000, "ticket")):
        code, error = start(tmp_path / "d", "--join", ticket)
        assert (code, error["code"], word in error["message"]) == (2, "bad_request", True), error
        assert ticket not in json.dumps(error)
    done = mf_node("--data-dir", str(calm.nodes[0].data_dir), "--json", "join", old)
    assert (done.returncode, "expired" in json.loads(done.stdout)["error"]["message"]) == (2, True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--http", "nowhere"), "--http"),
        (("--http", "127.0.0.1:99999"), "99999"),
        (("--transfer", "203.0.113.1:0"), "--transfer"),
        (("--listen", "/ip4/127.0.0.1/udp/1"), "listen"),
        (("--listen", "nonsense"), "listen"),
        (("--storage", "lots"), "lots"),
        (("--max-memory", "-1GB"), "-1GB"),
        (("--colour", "red"), "--colour"),
    ],
)
def test_an_option_that_makes_no_sense(tmp_path: Path, options: tuple[str, ...], named: str) -> None:
    code, error = start(tmp_path / "d", *options)
    assert code in (2, 4)
    assert named in error["message"] + str(error["hint"])


def test_a_config_with_an_unknown_key(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('storrage = "1GB"\n')
    code, error = start(tmp_path)
    assert (code, "storrage" in error["message"]) == (2, True)


def test_commands_without_a_node(tmp_path: Path) -> None:
    for arguments in (("status",), ("publish", "."), ("fetch", "a", "b"), ("chat", "a", "b")):
        done = mf_node("--data-dir", str(tmp_path), "--json", *arguments)
        assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (8, "not_running")
    plain = mf_node("--data-dir", str(tmp_path), "status")
    assert (plain.returncode, plain.stdout) == (8, "")
    assert "mf-node run" in plain.stderr
