"""Commands against a real owner's socket that answers as the node does."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import node.channel  # the error tree is whole only with these
import node.http.errors
import node.pipeline
from node.cli.app import cli, run_command_line
from node.owner import Notify, OwnerServer
from protocol.errors import MfError, NotFound, NotRunning, StorageFull, _tree
from tests.support.documents import GUIDE, check_document, schemas

PEER = "12D3KooWMPviAYmX2YYLEQt3aNS8wDVa5SxpzZc9RW51GnJLxbN7"
HELD = {"model_id": "mfm1x", "groups": 2, "shards": 2, "bytes": 10, "full_groups": 0, "owners": [PEER], "pinned": False}
ANSWERS: dict[str, Any] = {
    "publish": {
        "model_id": "mfm1x",
        "name": "a/b",
        "groups": 2,
        "k": 2,
        "n": 6,
        "shards": 12,
        "bytes": 100,
        "stored_bytes": 300,
        "saved_bytes": 100,
        "peers": 6,
        "seconds": 1.5,
        "durable": 12,
        "survives_losses": 4,
    },
    "models": {
        "models": [
            {
                "model_id": "mfm1x",
                "name": "a/b[x]",
                "publisher": PEER,
                "size_bytes": 5_000_000,
                "parameters": 7,
                "architecture": None,
                "survives_losses": None,
                "holders": 3,
            }
        ]
    },
    "fetch": {"model_id": "mfm1x", "path": "/out", "files": 3, "bytes": 100, "seconds": 0.1, "resumed": 20, "received": 90},
    "generate": {
        "event": "finished",
        "reason": "stop",
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "route": [{"peer": PEER}],
        "timings": {"first_token": 0.1, "total": 0.2},
        "replaced": 0,
        "reused": 5,
        "stages": [
            {"peer": PEER, "first": 0, "end": 6, "prefill": 0.02, "decode": 0.1, "wait": 0.0, "measured_by": PEER},
            {"peer": PEER, "first": 6, "end": 9, "prefill": None, "decode": None, "wait": None, "measured_by": None},
        ],
    },
    "ticket": {"ticket": "mft1abc"},
    "join": {"peers": 2},
    "trust": {"trusted": PEER},
    "holdings": {"holdings": [HELD]},
    "holders": {
        "model_id": "mfm1x",
        "layers": 30,
        "groups": [{"group": "embed", "encoding": "mfe1x", "k": 2, "n": 6, "n_max": 6, "survives_losses": -1, "shards": {"0": [PEER]}}],
    },
    "forget": {"model_id": "mfm1x", "freed": 10},
    "status": {
        "peer_id": PEER,
        "version": "0.1.0",
        "peers": [
            {"peer_id": PEER, "alive": True, "version": "1.0", "addresses": ["/ip4/1.2.3.4/tcp/1"], "rtt_ms": None, "last_seen": 1.0}
        ],
        "holdings": [HELD],
        "space": {"quota": 9, "used": 1, "free": 99, "saved": 5},
        "models": [
            {
                "model_id": "mfm1x",
                "name": "a/b",
                "survives_losses": 4,
                "weakest_group": "embed",
                "holders": 6,
                "held_by": [PEER],
                "coverage": {"embed": 4},
            }
        ],
        "blamed": [{"peer_id": PEER, "shard": "mfe1x/3", "reason": "wrong leaf", "at": 1.0}],
        "uncounted": [{"peer_id": PEER, "shard": "mfe1x/2", "verdict": "late"}],
        "publishing": [{"model_id": "mfm1x", "name": "alice/m@1", "shards": 60, "durable": 58, "seconds": 1.5}],
    },
    "explain": {
        "model_id": "mfm1x",
        "kind": "here",
        "why": "it fits",
        "hint": None,
        "tokens": 2048,
        "precision": "bf16",
        "stages": [
            {"peer": PEER, "first": 0, "end": 30, "here": True, "bytes": 9, "rtt_ms": 0.0}
            | {"ms_per_token": 20.0, "basis": "measured here", "queue_ms": None}
        ],
        "expected": {"tokens_per_second": 50.0, "first_token_seconds": 0.2, "prompt_tokens": 128, "loading": "not counted"},
        "budget": {"needed_ms": 0.0, "budget_ms": 400.0, "within": True, "refused": False},
        "engine": {"name": "llama", "why": "llama.cpp is faster for few sequences"},
        "considered": [{"peer": PEER, "memory": 1 << 30, "rtt_ms": 0.0, "shards_held": 3, "refused": False, "verdict": "taken"}],
    },
    "block": {"models": ["mfm1x"], "publishers": [PEER], "freed": 7},
    "callers": {
        "allow": [{"caller": "10.0.0.0/8", "name": None, "fixed": True}],
        "deny": [{"caller": "ab" * 32, "name": "a@b", "fixed": False}],
    },
    "callers_put": {"caller": "10.0.0.0/8", "list": "allow"},
    "callers_drop": {"caller": "10.0.0.0/8", "list": "none"},
    "rebalance": {"planned": 3, "moved": 2, "bytes": 10, "peers": 1, "refusals": {PEER: "full"}},
    "drain": {"handed_over": 4, "bytes": 10, "held_elsewhere": 1, "peers": 2, "seconds": 0.5, "stopping": True},
    "stop": {"stopping": True},
    "stage_audits": {
        "findings": [
            {
                "number": 7,
                "at": 1_800_000_000,
                "model_id": "mfm1x",
                "precision": "bf16",
                "first": 0,
                "end": 15,
                "parting": "outputs",
                "why": "the same rows went in and others came out",
                "wrong": PEER,
                "rows": 200,
                "apart": 180,
                "worst": 0.7,
                "said": [{"role": "session", "peer_id": PEER, "statements": 3}],
                "holds": None,
                "fault": None,
            }
        ],
        "damaged": [],
        "next": None,
        "counts": {
            "sessions": {"run": 90, "drawn": 2, "done": 2, "dropped": 0, "convictions": 1, "unknown": 0},
            "steps": {"run": 9_000, "drawn": 210, "audited": 200, "dropped": 10},
            "outcomes": {"agreed": 1, "wrong": 1},
        },
    },
}
LINES = {
    "publish": ["publish", "."],
    "models": ["models"],
    "fetch": ["fetch", "a/b", "out"],
    "chat": ["chat", "a/b", "hello"],
    "ticket": ["ticket"],
    "join": ["join", "mft1abc"],
    "trust": ["trust", PEER],
    "holdings": ["holdings"],
    "holders": ["holdings", "a/b"],
    "forget": ["forget", "a/b"],
    "block": ["block", "a/b"],
    "callers": ["callers", "list"],
    "rebalance": ["rebalance", "--rate", "20MB"],
    "drain": ["drain"],
    "status": ["status"],
    "explain": ["explain", "a/b"],
    "stop": ["stop"],
    "stage_audits": ["audit", "stages"],
}


class FakeNode:
    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.pages: list[dict[str, Any]] = []

    def methods(self) -> dict[str, Any]:
        return {name: self._method(name) for name in ANSWERS}

    def _method(self, name: str) -> Any:
        async def answer(params: dict[str, Any], notify: Notify) -> Any:
            self.asked.append((name, params))
            if params.get("model") == "nope":
                raise NotFound("no model nope", hint="mf-node models", details={"candidates": ["a/b"]})
            if params.get("model") == "full":
                raise StorageFull("no room", details={"refusals": {PEER: "its disk\x1b[2J is full"}})
            if name == "generate":
                await notify({"event": "planned", "kind": "here", "route": [], "model_id": "mfm1x"})
                await notify({"event": "text", "text": "\x1b\x07Hel", "tokens": 1})
                await notify({"event": "text", "text": "lo", "tokens": 2})
            if name == "publish":
                await notify({"event": "progress", "stage": "store", "done": 5, "total": 10})
            return self.pages.pop(0) if self.pages and name == "stage_audits" else ANSWERS[name]

        return answer


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeNode]:
    fake, up, down = FakeNode(), threading.Event(), threading.Event()

    async def serve() -> None:
        server = OwnerServer(tmp_path, fake.methods())
        await server.start()
        up.set()
        await asyncio.get_running_loop().run_in_executor(None, down.wait)
        await server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert up.wait(10)
    yield fake
    down.set()
    thread.join(10)


@pytest.mark.parametrize("name", sorted(LINES))
@pytest.mark.parametrize("before", [True, False])
def test_documents_are_as_the_guide_says(
    fake: FakeNode, tmp_path: Path, name: str, before: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data-dir", str(tmp_path), "--json"]
    line = [*options, *LINES[name]] if before else [*LINES[name], *options]
    assert run_command_line(line) == 0
    check_document({"stage_audits": "stages"}.get(name, name), json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("name", sorted(LINES))
def test_people_get_no_json(fake: FakeNode, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["--data-dir", str(tmp_path), *LINES[name]]) == 0
    out = capsys.readouterr().out
    assert out.strip()
    assert not out.startswith("{")


def test_brackets_in_names_are_shown(fake: FakeNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command_line(["--data-dir", str(tmp_path), "models"])
    assert "a/b[x]" in capsys.readouterr().out


def test_paths_reach_the_node_absolute(fake: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert run_command_line(["--data-dir", str(tmp_path), "--json", "publish", "usr", "--k", "2", "--n", "3"]) == 0
    unset = dict.fromkeys(("name", "version", "n_max", "compression", "gguf"))
    assert fake.asked == [("publish", {"path": "/usr", "k": 2, "n": 3, **unset})]


@pytest.mark.parametrize(("verb", "which"), [("allow", "allow"), ("deny", "deny"), ("drop", None)])
def test_callers_are_put_on_lists(fake: FakeNode, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, which: str | None) -> None:
    assert run_command_line(["--data-dir", str(tmp_path), "--json", "callers", verb, "10.0.0.0/8"]) == 0
    check_document("caller", json.loads(capsys.readouterr().out))
    asked = {"who": "10.0.0.0/8"} | ({"list": which} if which else {})
    assert fake.asked == [("callers_put" if which else "callers_drop", asked)]
    assert run_command_line(["--data-dir", str(tmp_path), "callers", verb, "10.0.0.0/8"]) == 0
    assert "10.0.0.0/8" in capsys.readouterr().out


def test_blocking_and_its_end(fake: FakeNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["block", "a/b"], ["block", "a/b", "--off"], ["block"], ["rebalance"]):
        assert run_command_line(["--data-dir", str(tmp_path), *line]) == 0
    assert [params for _name, params in fake.asked] == [{"what": "a/b", "block": True}, {"what": "a/b", "block": False}, {}, {}]
    assert f"{PEER}\nmfm1x" in capsys.readouterr().out
    assert run_command_line(["--data-dir", str(tmp_path), "block", "--off"]) == 2


@pytest.mark.parametrize(
    ("command", "changed", "said"),
    [
        ("drain", {}, "handed over 4 shards (10 B) to 2 nodes, left 1 that another node has as well; stopping"),
        ("drain", {"handed_over": 1, "peers": 1, "held_elsewhere": 0}, "handed over 1 shard (10 B) to 1 node; stopping"),
        ("drain", {"handed_over": 0, "held_elsewhere": 0}, "nothing lies here; stopping"),
        ("rebalance", {}, f"moved 2 of 3 shards (10 B) to 1 node\n  {PEER}: full"),
        ("rebalance", {"planned": 0}, "nothing to move: no node that is emptier than this one should hold any shard that lies here"),
    ],
)
def test_space_commands_say_what_became_of_the_shards(
    fake: FakeNode,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    changed: dict[str, Any],
    said: str,
) -> None:
    monkeypatch.setitem(ANSWERS, command, {**ANSWERS[command], **changed})
    assert run_command_line(["--data-dir", str(tmp_path), command]) == 0
    assert capsys.readouterr().out == f"{said}\n"


def test_findings_come_page_by_page_and_a_row_that_doesnt_hold_is_an_error(
    fake: FakeNode, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, line = ANSWERS["stage_audits"], ["--data-dir", str(tmp_path), "--json", "audit", "stages", "--verify", "--limit", "70"]
    pages = [
        {**first, "findings": first["findings"] * 49, "damaged": [{"number": 6, "fault": "it was touched"}], "next": 6},
        {**first, "findings": first["findings"] * 3, "next": 3},
        {**first, "findings": first["findings"] * 5},
    ]
    monkeypatch.setattr(fake, "pages", pages)
    assert run_command_line(line) == 4
    told = json.loads(capsys.readouterr().out)
    assert (len(told["findings"]), [one["number"] for one in told["damaged"]], told["next"]) == (57, [6], None)
    assert [params for _, params in fake.asked] == [
        {"limit": 50, "below": None, "verify": True}, {"limit": 20, "below": 6, "verify": True}, {"limit": 17, "below": 3, "verify": True},
    ]  # fmt: skip
    monkeypatch.setattr(fake, "pages", [{**first, "findings": [{**first["findings"][0], "fault": "no third", "holds": False}]}])
    assert run_command_line(["--data-dir", str(tmp_path), "audit", "stages", "--verify"]) == 4
    assert "200 of 9000 steps were run again" in capsys.readouterr().out
    monkeypatch.setattr(fake, "pages", [first])
    assert run_command_line(["--data-dir", str(tmp_path), "audit", "stages", "--verify"]) == 0


def test_chat_streams_and_joins(fake: FakeNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["--data-dir", str(tmp_path), "chat", "a/b", "hello", "--system", "be brief"]) == 0
    assert capsys.readouterr().out == "Hello\n"
    assert fake.asked[0][1]["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]


def test_progress_is_not_on_standard_output(fake: FakeNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command_line(["--data-dir", str(tmp_path), "--json", "publish", "."])
    captured = capsys.readouterr()
    assert "5 of 10" in captured.err
    assert json.loads(captured.out)


def test_an_error_is_a_document_with_json_and_a_sentence_without(
    fake: FakeNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--data-dir", str(tmp_path), "explain", "nope"]
    assert run_command_line([*line, "--json"]) == NotFound.exit_code
    assert json.loads(capsys.readouterr().out)["error"] == {
        "code": "not_found", "message": "no model nope", "hint": "mf-node models", "details": {"candidates": ["a/b"]},
    }  # fmt: skip
    assert run_command_line(line) == NotFound.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "near: a/b" in captured.err
    assert "Traceback" not in captured.err


def test_who_refused_is_told_and_nobody_steers_the_terminal(fake: FakeNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["--data-dir", str(tmp_path), "explain", "full"]) == StorageFull.exit_code
    assert f"{PEER}: its disk[2J is full" in capsys.readouterr().err


def test_nobody_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["--json", "--data-dir", str(tmp_path), "status"]) == NotRunning.exit_code
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "not_running"


@pytest.mark.parametrize("line", [["nope"], ["status", "--nope"], ["fetch", "a"], ["run", "--lend", "all"], ["publish", "x", "--k", "0"]])
def test_wrong_lines_are_bad_input(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line([*line, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad_request"


def test_the_conversation_survives_an_error(fake: FakeNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from node.cli import chat
    from node.cli.session import Session

    messages: list[dict[str, str]] = []
    session = Session(tmp_path)
    chat._turn(session, "nope", messages, "one", {})
    assert messages == []
    chat._turn(session, "a/b", messages, "two", {})
    assert messages == [{"role": "user", "content": "two"}, {"role": "assistant", "content": "\x1b\x07Hello"}]


def test_every_command_is_in_the_guide() -> None:
    assert set(cli.commands) | {"holders", "keys", "revoked", "tier", "shown", "caller", "stages"} == set(schemas())


def test_the_guide_has_every_exit_code() -> None:
    assert node.channel
    assert node.http.errors
    assert node.pipeline
    rows = [row.split("|") for row in GUIDE.read_text().splitlines() if row.startswith("| ") and row.split("|")[1].strip().isdigit()]
    told = {code.strip().strip("`"): int(row[1]) for row in rows for code in row[2].split(",") if code.strip()}
    product = [kind for kind in _tree(MfError) if not kind.__module__.startswith("tests")]
    for kind in product:
        assert told.get(kind.code) == kind.exit_code, f"{kind.__name__}: {kind.code} exits {kind.exit_code}"


def test_doctor_says_what_it_sees(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["--json", "--data-dir", str(tmp_path), "doctor"], standalone_mode=False)
    document = json.loads(done.stdout)
    check_document("doctor", document)
    assert {check["name"] for check in document["checks"]} >= {"python", "packages", "sandbox", "disk", "clock", "memory", "device"}


def test_doctor_names_the_device_that_is_asked_and_isnt_here(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('device = "cuda:7"\n')
    done = CliRunner().invoke(cli, ["--json", "--data-dir", str(tmp_path), "doctor"], standalone_mode=False)
    (check,) = (check for check in json.loads(done.stdout)["checks"] if check["name"] == "device")
    assert check["state"] == "fail"
    assert "cuda:7 isn't here; this machine has" in check["detail"]


def test_timings_are_shown_below_the_reply_stage_by_stage(fake: FakeNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["--data-dir", str(tmp_path), "chat", "a/b", "hello", "--timings"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "Hello\n"
    assert "here: first_token 100.0 ms · total 200.0 ms" in captured.err
    assert "stage 1, layers 0–5 at" in captured.err
    assert "prefill 20.0 ms · decode 100.0 ms · wait 0.0 ms" in captured.err
    assert "prefill – ms · decode – ms · wait – ms" in captured.err
