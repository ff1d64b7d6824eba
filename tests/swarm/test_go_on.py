"""`mf-node chat` with two nodes to ask: the one that makes the reply dies in the middle, the other goes on."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes import TOP, Swarm, environment
from tests.support.wait import wait_until
from tests.swarm import tools
from tests.swarm.chaos import deep_llama

pytestmark = pytest.mark.swarm
TOKENS = 400
PROMPT = "abc"
DIES_AFTER = 40
"""Bytes of the reply."""


def read_some(chat: subprocess.Popen[bytes], wanted: int, within: float) -> bytes:
    """At least so many bytes of what it prints; fails when they don't come."""
    assert chat.stdout is not None
    got, end = b"", time.monotonic() + within
    while len(got) < wanted:
        ready, _, _ = select.select([chat.stdout], [], [], max(0.0, end - time.monotonic()))
        assert ready, f"only {len(got)} bytes came within {within} s"
        more = os.read(chat.stdout.fileno(), 4096)
        assert more, "the chat ended early"
        got += more
    return got


def test_chat_goes_on_when_its_entry_is_killed(tmp_path: Path) -> None:
    """In the reference precision and with a token for each letter, so that the words are those of the undisturbed reply."""
    model = deep_llama(tmp_path / "model")
    with Swarm(tmp_path, 3, "--lend", "both", env={"MF_PRECISION": "fp32"}) as swarm:
        holder, first, second = swarm.nodes
        holder.cli("publish", str(model), "--name", "deep")
        wait_until(lambda: all(node.cli("models")["models"] for node in swarm.nodes), 10.0, "the model to be known")
        undisturbed = tools.ask(first, "deep", PROMPT, TOKENS)
        assert undisturbed.error is None
        command = ["--data-dir", str(tmp_path / "nobody"), "chat", "deep", PROMPT, "--max-tokens", str(TOKENS)]
        chat = subprocess.Popen(
            [sys.executable, "-m", "node", *command, "--api", first.url, "--api", second.url],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=TOP, env=environment(),
        )  # fmt: skip
        try:
            made = read_some(chat, DIES_AFTER, 60.0)
            first.kill()
            rest, told = chat.communicate(timeout=120.0)
        finally:
            chat.kill()
            chat.wait()
        assert chat.returncode == 0, told.decode()
        assert (made + rest).decode().rstrip("\n") == undisturbed.text
        assert f"[{TOKENS} tokens" in told.decode()
        went_on = second.event("reply_finished", 5.0)["tokens"]
        tools.report("a chat whose entry was killed", f"{TOKENS - went_on} tokens by the first node, {went_on} by the second")
        assert 0 < went_on <= TOKENS - DIES_AFTER
