"""Private models over the in-memory swarm: who sees and runs them, what a holder's disk and wire show, and what a change does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from safetensors import safe_open

from node.accounts.caller import Caller
from node.locate import Located, check_open
from node.model_folder import scan
from node.model_index import ModelQuery
from node.model_manifest import build_manifest
from node.private.gateway import PrivateGateway
from node.private.models import matches
from node.private.vault import Vault
from node.swarm.interface import ReadersView
from protocol.errors import Conflict, Forbidden, MfError, NotFound
from protocol.ids import ModelId, digest, model_text, public_from_peer
from protocol.private import Reader, seal_said, wrap
from protocol.records import Readers
from tests.node.private.world import PrivateNode, PrivateWorld, Wire, lying_at, world
from tests.node.verb_fakes import quiet, small_model
from tests.support.wait import until

NAME = "secret-sauce"


@pytest.fixture
async def four(tmp_path: Path) -> AsyncIterator[PrivateWorld]:
    async with world(4, tmp_path) as made:
        yield made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = small_model(tmp_path / "little")
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"xyloquartz-9317": 7}}}')
    return folder


def bob_elsewhere(caller: Caller) -> Caller:
    """The same identity as another home sees it: no user of its own, no key here."""
    return Caller("token", frozenset(), caller.subject, "known", caller.account, None, caller.name, claimed=True)


async def sees(node: PrivateNode, caller: Caller) -> list[str]:
    return [opened.said.full_name() for opened in await node.private.visible(caller)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def known_bytes(folder: Path) -> list[bytes]:
    """What would give the model away: text of its files, names of tensors, every hash of the public manifest."""
    manifest, data = build_manifest(scan(folder), lambda done, total: None)
    with safe_open(folder / "model.safetensors", "np") as tensors:
        names = [name.encode() for name in tensors.keys()]  # noqa: SIM118
    texts = [b"xyloquartz", b"vocab", b"LlamaForCausalLM", b"config.json", b"tokenizer", b"hidden_size", NAME.encode()]
    hashes = [digest(data), *(entry.digest for entry in manifest.files), *(entry.digest for entry in manifest.tensors)]
    hashes += [group.id for group in manifest.groups]
    first = (folder / "model.safetensors").read_bytes()
    weights = [first[at : at + 32] for at in range(len(first) - 64, len(first) // 2, -4_096)]
    return [*names, *texts, *hashes, *(entry.hex().encode() for entry in hashes), *weights]


async def test_nothing_of_it_lies_or_travels_where_it_isnt_shared(
    four: PrivateWorld, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire(monkeypatch)
    home, reader, *others = four.nodes
    made = await home.publish(model, home.owner, name=NAME, description="xyloquartz inside")
    await four.swarm.tell()
    await home.sharing.share(home.owner, made, reader.verbs.peer, "reader")
    fetched = await reader.verbs.fetcher.fetch(model_text(made), tmp_path / "back", quiet)
    assert fetched["files"] == 4
    assert contents(tmp_path / "back") == contents(model)
    secrets = known_bytes(model)
    for node in others:
        lying, heard = lying_at(node.verbs), wire.got[node.verbs.peer]
        assert len(node.verbs.transfer.store.list_shards()) == len(build_manifest(scan(model), lambda done, total: None)[0].groups)
        for secret in secrets:
            assert not any(secret in one for one in lying), secret
            assert not any(secret in one for one in heard), secret
        with pytest.raises(NotFound):
            await node.verbs.fetcher.fetch(model_text(made), tmp_path / "never", quiet)
    said = [view.record for view in four.swarm.board.readers]
    told = b"".join([*(one.sealed for one in said), *(wrapped for one in said for wrapped in one.wraps)])
    assert not any(secret in told for secret in secrets)
    assert public_from_peer(reader.verbs.peer) not in told
    public = await home.verbs.publish(model)
    assert any(secret in one for one in lying_at(others[0].verbs) for secret in secrets), "the search finds what is there"
    assert public["model_id"] != model_text(made)


async def test_roles_say_who_sees_changes_shares_and_takes_back(four: PrivateWorld, model: Path) -> None:
    home, away = four.nodes[0], four.nodes[1]
    ann, _ = await home.account("ann")
    bob, user = await away.account("bob")
    stranger, _ = await home.account("eve")
    made = await home.publish(model, ann, name=NAME)
    assert await sees(home, ann) == [f"alice/{NAME}@1"]
    for node, caller in ((home, stranger), (home, home.owner), (away, bob), (home, Caller("open", frozenset(), "x", "free"))):
        assert await sees(node, caller) == []
        with pytest.raises(NotFound):
            await node.private.find(caller, model_text(made))
        assert await node.private.find(caller, NAME) is None
    for caller, error in ((stranger, NotFound), (home.owner, NotFound)):
        with pytest.raises(error):
            await home.sharing.share(caller, made, user.public.hex(), "reader")
    await home.sharing.share(ann, made, user.public.hex(), "reader")
    assert await sees(away, bob) == [f"alice/{NAME}@1"]
    assert (await away.private.find(bob, NAME)) is not None
    here = bob_elsewhere(bob)
    for refused in (home.sharing.share(here, made, stranger.account.hex(), "reader"), home.sharing.change(here, made, {"license": "mit"}),  # type: ignore[union-attr]
                    home.sharing.withdraw(here, made)):  # fmt: skip
        with pytest.raises(Forbidden):
            await refused
    await home.sharing.share(ann, made, user.public.hex(), "editor")
    assert (await home.sharing.change(here, made, {"license": "mit"})).license == "mit"
    await home.sharing.share(ann, made, user.public.hex(), "admin")
    await home.sharing.share(here, made, stranger.account.hex(), "reader")  # type: ignore[union-attr]
    for role in ("owner", "admin"):
        with pytest.raises(Forbidden):
            await home.sharing.share(here, made, stranger.account.hex(), role)  # type: ignore[union-attr]
    with pytest.raises(Forbidden):
        await home.sharing.share(here, made, ann.account.hex(), None)  # type: ignore[union-attr]
    with pytest.raises(Conflict):
        await home.sharing.share(ann, made, ann.account.hex(), "reader")  # type: ignore[union-attr]
    assert set(home.sharing.entries(ann, made).values()) == {"owner", "admin", "reader"}
    done = await home.sharing.withdraw(ann, made)
    assert done["shards_dropped"]
    assert await sees(home, ann) == await sees(away, bob) == []


async def test_who_is_left_out_is_out_everywhere(four: PrivateWorld, model: Path, tmp_path: Path) -> None:
    home, away = four.nodes[0], four.nodes[1]
    bob, user = await away.account("bob")
    made = await home.publish(model, home.owner, name=NAME)
    await four.swarm.tell()
    await home.sharing.share(home.owner, made, user.public.hex(), "reader")
    opened = await away.private.find(bob, NAME)
    assert opened is not None
    assert (await away.verbs.locator.locate(made)).secret is not None
    await home.sharing.share(home.owner, made, user.public.hex(), None)
    away.vault.changed("readers", home.verbs.peer)
    await until(lambda: not away.vault._following, 5, "it has looked")
    with pytest.raises(NotFound):
        await away.private.find(bob, model_text(made))
    with pytest.raises(NotFound):
        check_open(await away.verbs.locator.locate(made))


async def test_a_change_of_readers_keeps_those_who_stay(four: PrivateWorld, model: Path) -> None:
    home, away = four.nodes[0], four.nodes[1]
    bob, user = await away.account("bob")
    made = await home.publish(model, home.owner, name=NAME)
    await four.swarm.tell()
    await home.sharing.share(home.owner, made, user.public.hex(), "reader")
    assert await away.private.find(bob, NAME) is not None
    lost: list[ModelId] = []
    away.vault.on_lost(lost.append)
    await home.sharing.change(home.owner, made, {"description": "better"})
    away.vault.changed("readers", home.verbs.peer)
    await until(lambda: not away.vault._following, 5, "it has looked")
    assert lost == []
    (again,) = await away.private.visible(bob)
    assert again.said.description == "better"


async def test_teams(four: PrivateWorld, model: Path) -> None:
    home = four.nodes[0]
    ann, _ = await home.account("ann")
    bob, user = await home.account("bob")
    made = await home.publish(model, ann, name=NAME)
    teams = home.sharing.teams
    await teams.make(ann.who, "cooks")
    with pytest.raises(Conflict):
        await teams.make(bob.who, "Cooks")
    await home.sharing.share(ann, made, "team:cooks", "editor")
    assert await sees(home, bob) == []
    with pytest.raises(Forbidden):
        await teams.add(bob.who, "cooks", user.public)
    await teams.add(ann.who, "cooks", user.public)
    await home.sharing.team_changed("cooks")
    assert (await home.sharing.change(bob, made, {"license": "mit"})).license == "mit"
    await teams.remove(ann.who, "cooks", user.public)
    await home.sharing.team_changed("cooks")
    assert await sees(home, bob) == []
    with pytest.raises(NotFound):
        await home.sharing.share(ann, made, "team:nobody", "reader")
    await teams.drop(ann.who, "cooks")
    await home.sharing.team_changed("cooks")
    assert await sees(home, ann) == [f"alice/{NAME}@1"]


async def test_a_restart_keeps_secrets_and_readers(four: PrivateWorld, model: Path, tmp_path: Path) -> None:
    home, away = four.nodes[0], four.nodes[1]
    bob, user = await away.account("bob")
    made = await home.publish(model, home.owner, name=NAME, description="kept")
    await home.sharing.share(home.owner, made, user.public.hex(), "reader")
    four.swarm.board.readers.clear()
    again = Vault(home.verbs.peer, bytes(32), home.verbs.swarm, home.vault._executor)  # type: ignore[arg-type]
    home.sharing._vault, home.sharing._entries = again, {}
    await home.sharing.load()
    assert await again.secret(made) == await home.vault.secret(made)
    away.vault.changed("readers", home.verbs.peer)
    assert await sees(away, bob) == [f"alice/{NAME}@1"]


async def test_a_reader_shares_nothing_on_his_own_account(four: PrivateWorld, model: Path) -> None:
    """He knows the secret, and signs who may read: nobody believes him, since the manifest names its publisher."""
    home, mallory, eves = four.nodes[0], four.nodes[1], four.nodes[2]
    eve, user = await eves.account("eve")
    made = await home.publish(model, home.owner, name=NAME)
    await four.swarm.tell()
    await home.sharing.share(home.owner, made, mallory.verbs.peer, "reader")
    (opened,) = [one for one in await mallory.vault.opened() if one.model == made]
    forged = msgspec.structs.replace(opened.said, readers=[Reader(user.public, "owner")], nodes=[eves.verbs.peer])
    wraps = [wrap(opened.secret, user.public, made, mallory.verbs.peer)]
    record = Readers(sequence=9, expires=1, model=made, wraps=wraps, sealed=seal_said(opened.secret, forged))
    four.swarm.board.readers.append(ReadersView(mallory.verbs.peer, record))
    with pytest.raises((NotFound, MfError)):
        await eves.private.find(eve, model_text(made))
    with pytest.raises(MfError):
        check_open(await eves.verbs.locator.locate(made))


async def test_it_runs_where_its_publisher_says_and_nowhere_else(four: PrivateWorld, model: Path) -> None:
    home, granted, other = four.nodes[0], four.nodes[1], four.nodes[2]
    made = await home.publish(model, home.owner, name=NAME)
    await four.swarm.tell()
    await home.sharing.share(home.owner, made, granted.verbs.peer, "reader")
    located: Located = await granted.verbs.locator.locate(made)
    assert located.may_run_at(home.verbs.peer)
    assert located.may_run_at(granted.verbs.peer)
    assert not located.may_run_at(other.verbs.peer)
    closed = await other.verbs.locator.locate(made)
    assert (closed.secret, closed.manifest.covers, closed.nodes) == (None, True, frozenset())
    with pytest.raises(NotFound):
        await other.verbs.assembler.group(closed, 0)


async def test_holders_repair_and_count_by_the_cover(four: PrivateWorld, model: Path) -> None:
    home, other = four.nodes[0], four.nodes[3]
    made = await home.publish(model, home.owner, name=NAME, k=2, n=4)
    await four.swarm.tell()
    storage = await other.verbs.reporter.storage(made)
    assert (storage["k"], storage["n"], storage["shards"]) == (2, 4, 4 * storage["groups"])
    assert set(storage["group_survives_losses"]) == {f"group.{number}" for number in range(storage["groups"])}


async def test_the_gateway_shows_it_first_and_to_its_readers_alone(
    four: PrivateWorld, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from node.private import gateway as module
    from tests.support.fake_gateway import FakeGateway, many_models

    home = four.nodes[0]
    ann, _ = await home.account("ann")
    await home.publish(model, ann, name=NAME, description="rare words")
    shown = PrivateGateway(FakeGateway(listed=many_models(5)), home.private)
    now = [ann]
    monkeypatch.setattr(module, "caller", lambda: now[0])
    page, total = await shown.page(ModelQuery(limit=3))
    assert ([info.private for info in page], total) == ([True, False, False], 6)
    page, total = await shown.page(ModelQuery(limit=3, offset=3))
    assert [info.name for info in page] == [f"ann/model-{number:04d}@1" for number in (2, 3, 4)]
    assert (await shown.model(NAME)).private
    now[0] = Caller("open", frozenset(), "x", "free")
    page, total = await shown.page(ModelQuery(limit=3))
    assert ([info.private for info in page], total) == ([False] * 3, 5)
    with pytest.raises(NotFound):
        await shown.model(NAME)
    (opened,) = await home.private.visible(ann)
    assert matches(opened, ModelQuery(search="rare", max_parameters=10**9))
    for query in (ModelQuery(search="common"), ModelQuery(min_parameters=10**12), ModelQuery(category="none"), ModelQuery(framework="x")):
        assert not matches(opened, query)
