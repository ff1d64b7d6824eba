"""`GET /api/v1/audit/stages`: for the owner alone, page by page, and nothing that a statement says of a text."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from node.accounts.api_keys import KeyRequest
from node.audit_tally import AuditTally
from node.evidence_store import FILE, EvidenceStore
from node.http import account_schemas as schemas
from node.http.access import Access
from node.http.app import HttpServer
from node.http.metrics import Metrics
from node.http.settings import HttpSettings
from node.stage_audit_report import StageAuditReport
from tests.node.accounts.world import FakeSwarm, close_home, home_key, open_home
from tests.node.http.conftest import Site
from tests.node.http.test_access import bearer
from tests.runtime.test_stage_evidence import PEERS, convicted
from tests.support.fake_gateway import FakeGateway


async def test_for_admins_alone_page_by_page_and_checked_when_asked(tmp_path: Path) -> None:
    from aiohttp import ClientSession

    home = await open_home(tmp_path, FakeSwarm(), 1)
    store, tally = EvidenceStore(tmp_path, home_key(1)), AuditTally()
    await store.open()
    for _ in range(5):
        await store.add(convicted)
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("update evidence set record = x'00' where number = 4")
    db.close()
    tally.ran(90)
    tally.drew(90)
    tally.came("wrong", 90, 80)
    access = Access(home.accounts, home.journal, lambda who: {}, stage_audits=StageAuditReport(store, tally))
    server = HttpServer(FakeGateway(), HttpSettings(port=0, open=True, local=False), access)
    await server.start()
    site = Site(server._gateway, server, ClientSession())  # type: ignore[arg-type]
    try:
        _, plain = await home.accounts.keys.make(None, KeyRequest("plain", ("inference", "models:read")))
        assert (await site.get("/api/v1/audit/stages", headers=bearer(plain)))[0] == 403
        _, text = await home.accounts.keys.make(None, KeyRequest("owner", ("admin",)))
        asked, found = "/api/v1/audit/stages?limit=2&verify=true", list[tuple[list[int], list[int]]]()
        below: int | None = None
        while not found or below is not None:
            status, body = await site.get(asked + (f"&below={below}" if below is not None else ""), headers=bearer(text))
            assert status == 200, body
            page = msgspec.convert(body["data"], schemas.StageAudits)
            found.append(([one.number for one in page.findings], [one.number for one in page.damaged]))
            assert all((one.holds, one.fault, one.wrong, one.at) == (True, None, PEERS[0], 1_800_000_000) for one in page.findings)
            below = page.next
        assert found == [([5], [4]), ([3, 2], []), ([1], [])]
        assert [said.role for said in page.findings[0].said] == ["session", "again", "third"]
        assert (page.counts.sessions.convictions, page.counts.steps.audited, page.counts.steps.dropped) == (1, 80, 10)
        _, body = await site.get("/api/v1/audit/stages", headers=bearer(text))
        assert body["data"]["findings"][0]["holds"] is None
        for wrong in ("limit=0", "limit=201", "below=-1", "verify=perhaps", "peer=x"):
            assert (await site.get(f"/api/v1/audit/stages?{wrong}", headers=bearer(text)))[0] == 400
    finally:
        await site.session.close()
        await server.stop()
        await close_home(home)
        store.close()


@pytest.mark.parametrize("word", ["agreed", "wrong", "undecided", "silent", "nobody", "skipped", "short", "failed"])
def test_every_drawn_step_is_audited_or_dropped(word: str) -> None:
    metrics = Metrics()
    tally = AuditTally(metrics.stage_audit)
    tally.ran(1_000)
    tally.ran(100)
    tally.drew(100)
    done = word in ("agreed", "wrong", "undecided", "silent")
    tally.came(word, 100, 70 if done else 0)
    told: dict[str, Any] = tally.told()
    assert told["steps"] == {"run": 1_100, "drawn": 100, "audited": 70 if done else 0, "dropped": 30 if done else 100}
    assert told["sessions"] == {
        "run": 2, "drawn": 1, "done": int(done), "dropped": int(not done), "convictions": int(word == "wrong"),
        "unknown": int(word == "undecided"),
    }  # fmt: skip
    assert told["outcomes"][word] == 1
    page = metrics.page().decode()
    assert f'mf_stage_audits_total{{verdict="{word}"}} 1.0' in page
    assert 'mf_stage_audit_steps_total{what="run"} 1100.0' in page
    assert f'mf_stage_audit_sessions_total{{what="{"done" if done else "dropped"}"}} 1.0' in page


def test_no_more_is_counted_as_audited_than_was_drawn() -> None:
    tally = AuditTally()
    tally.drew(10)
    tally.came("agreed", 10, 25)
    assert tally.told()["steps"] == {"run": 0, "drawn": 10, "audited": 10, "dropped": 0}
