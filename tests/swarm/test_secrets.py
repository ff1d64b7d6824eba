"""No prompt, reply, ticket or key in any log, metric or file, after all that `test_faults` has done to the same swarm."""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import base58
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from node.swarm.state import StateFile
from tests.swarm import tools
from tests.swarm.scene import CANARY, PROMPT, Scene

pytestmark = pytest.mark.swarm

KEPT_ON_PURPOSE = ("identity.key", "swarm.msgpack")
"""The key and the swarm's secret must lie somewhere: in these two files, readable by the owner alone."""


def forms(secret: bytes) -> list[bytes]:
    texts = [secret.hex(), secret.hex().upper(), base58.b58encode(secret).decode()]
    texts += [base64.b64encode(secret).decode().rstrip("="), base64.urlsafe_b64encode(secret).decode().rstrip("=")]
    texts += [base64.b32encode(secret).decode().rstrip("=").lower(), str(list(secret))[1:-1], repr(secret)[2:-1]]
    return [secret, *(text.encode() for text in texts)]


def secrets_of(scene: Scene) -> dict[str, list[bytes]]:
    found = {"the prompt": [CANARY.encode(), CANARY[::-1].encode()]}
    found["the reply"] = [json.dumps(scene.text)[1:-1].encode()[:40], scene.text.encode()[:24]]
    for node in scene.swarm.nodes:
        name = node.data_dir.name
        key = load_pem_private_key((node.data_dir / "identity.key").read_bytes(), None)
        found[f"the key of {name}"] = forms(key.private_bytes_raw())  # type: ignore[union-attr]
        state = StateFile(node.data_dir / "swarm.msgpack").load()
        assert state is not None
        found[f"the swarm secret of {name}"] = [form for secret in state.secrets() for form in forms(secret)]
        found[f"the ticket of {name}"] = [node.ticket.encode(), node.ticket.encode()[4:60]]
    return found


def written(path: Path) -> bytes:
    """What was ever written to a file; its holes, which may be GiBs, hold nothing."""
    pieces = []
    with path.open("rb") as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    break
                raise
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            pieces.append(os.pread(file.fileno(), at - start, start))
    return b"".join(pieces)


def places(scene: Scene) -> Iterator[tuple[str, bytes]]:
    """Everything that nodes wrote or say."""
    for node in scene.swarm.nodes:
        yield str(node.log), node.log.read_bytes()
        for path in node.data_dir.rglob("*"):
            if path.is_file() and path.name not in KEPT_ON_PURPOSE:
                yield str(path), written(path)
        if node.alive:
            yield f"/metrics of {node.data_dir.name}", node.http("GET", "/metrics")[2]
    for number, text in enumerate(scene.metrics):
        yield f"/metrics {number} of a node that is gone", text.encode()


def provoke(scene: Scene) -> None:
    """Errors about inputs that hold the canary, on both surfaces."""
    bad = [
        ("/v1/chat/completions", {"model": CANARY, "messages": [{"role": "user", "content": PROMPT}]}),
        ("/v1/chat/completions", {"model": scene.model, "messages": [{"role": CANARY, "content": PROMPT}]}),
        ("/v1/chat/completions", {"model": scene.model, "messages": [{"role": "user", "content": PROMPT}], CANARY: 1}),
        ("/v1/chat/completions", {"model": scene.model, "messages": [{"role": "user", "content": PROMPT * 500}], "max_tokens": 4}),
        (f"/api/v1/models/{scene.model_id}/inference", {"input": {"prompt": PROMPT}, "parameters": {CANARY: 1}}),
    ]
    for path, body in bad:
        assert scene.asker.http("POST", path, body)[0] >= 400
    assert scene.asker.http("POST", "/v1/chat/completions", f'{{"model": "{CANARY}'.encode())[0] == 400
    assert scene.asker.http("GET", f"/v1/models/unknown?name={CANARY}")[0] == 400
    for arguments in (("join", f"mft1{CANARY}"), ("trust", CANARY)):
        assert tools.fails(scene.asker, *arguments)


def test_no_secret_lies_anywhere(scene: Scene) -> None:
    tools.ask(scene.asker, scene.model, PROMPT, 2)
    provoke(scene)
    wanted = secrets_of(scene)
    looked, size, found = 0, 0, []
    for place, data in places(scene):
        looked, size = looked + 1, size + len(data)
        found += [f"{what} in {place}" for what, needles in wanted.items() if any(needle in data for needle in needles)]
    tools.report("searched for secrets", f"{looked} places, {size / 2**20:.1f} MiB, {len(wanted)} secrets")
    assert not found, "\n".join(found)


def test_what_must_be_kept_is_for_the_owner_alone(scene: Scene) -> None:
    for node in scene.swarm.nodes:
        for name in KEPT_ON_PURPOSE:
            path = Path(node.data_dir / name)
            assert path.stat().st_mode & 0o077 == 0, path
