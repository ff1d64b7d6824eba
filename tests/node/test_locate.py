"""From an id to manifest and encodings: from any holder, and only what belongs to the model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.swarm.interface import HoldingView
from protocol.errors import BadInput, NotFound, Unavailable
from protocol.ids import EncodingId, ModelId, model_from
from protocol.records import Held
from tests.node.verb_fakes import VerbNode, VerbSwarm, small_model, verb_swarm


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncIterator[tuple[VerbSwarm, VerbNode, ModelId]]:
    """Three holders of a model, a fourth node that has nothing."""
    async with verb_swarm(3, tmp_path) as swarm:
        done = await swarm.nodes[0].publish(small_model(tmp_path / "m"))
        await swarm.tell()
        yield swarm, await swarm.add(tmp_path), model_from(done["model_id"])


Stored = tuple[VerbSwarm, VerbNode, ModelId]


def announce(swarm: VerbSwarm, node: VerbNode, model: ModelId, *encodings: bytes) -> None:
    held = [Held(0, encoding, [0]) for encoding in encodings]
    before = swarm.board.holdings.get((node.peer, model))
    swarm.board.holdings[node.peer, model] = HoldingView(node.peer, model, [*(before.held if before else ()), *held], [])


async def test_manifest_and_all_encodings_come_from_any_holder(stored: Stored) -> None:
    swarm, asker, model = stored
    swarm.leave(swarm.nodes[0])
    located = await asker.locator.locate(model)
    assert sorted(located.encodings) == list(range(len(located.manifest.groups)))
    assert {known.signer for entries in located.encodings.values() for known in entries} == {swarm.nodes[0].peer}
    assert asker.transfer.store.get_blob(model) == located.manifest_bytes


async def test_a_model_nobody_holds_is_not_found_after_a_look_up(stored: Stored) -> None:
    _swarm, asker, _model = stored
    unknown = ModelId(b"\x01" * 32)
    with pytest.raises(NotFound, match="no reachable peer"):
        await asker.locator.locate(unknown)
    assert asker.swarm.looked_up == [unknown]
    assert await asker.locator.located_here(unknown) is None


async def test_holders_that_have_no_manifest_are_named(stored: Stored) -> None:
    swarm, asker, _model = stored
    claimed = ModelId(b"\x02" * 32)
    announce(swarm, swarm.nodes[1], claimed, bytes(32))
    with pytest.raises(Unavailable, match="1 of 1 records") as caught:
        await asker.locator.locate(claimed)
    assert caught.value.details["asked"] == [swarm.nodes[1].peer]


async def test_a_kept_manifest_of_another_model_is_refused(stored: Stored) -> None:
    swarm, asker, model = stored
    manifest = swarm.nodes[0].transfer.store.get_blob(model)
    assert manifest is not None
    asker.transfer.store._blobs[bytes(32)] = manifest
    with pytest.raises(BadInput, match="doesn't hash"):
        await asker.locator.locate(ModelId(bytes(32)))


async def test_bytes_that_hash_but_are_no_manifest_are_refused(stored: Stored) -> None:
    swarm, asker, _model = stored
    name = ModelId(await swarm.nodes[1].transfer.put_blob(b"no manifest"))
    announce(swarm, swarm.nodes[1], name, bytes(32))
    with pytest.raises(BadInput, match="manifest"):
        await asker.locator.locate(name)


async def test_encodings_that_are_none_or_of_other_models_are_left_out_for_good(stored: Stored, tmp_path: Path) -> None:
    swarm, asker, model = stored
    liar = swarm.nodes[2]
    await swarm.nodes[1].publish(small_model(tmp_path / "other", seed=5, layers=1), name="other")
    other = swarm.nodes[1].transfer.store.list_shards()
    foreign = next(info.key.encoding for info in other if info.model != model and info.group == 0)
    nonsense = await liar.transfer.put_blob(b"nonsense")
    announce(swarm, liar, model, foreign, nonsense)
    located = await asker.locator.locate(model)
    assert not located.known_ids() & {foreign, nonsense}
    assert located.blamed == {foreign, nonsense}
    before = await asker.locator.locate(model)
    assert before is located


async def test_an_encoding_nobody_gives_out_is_no_obstacle(stored: Stored) -> None:
    swarm, asker, model = stored
    announce(swarm, swarm.nodes[1], model, b"\x07" * 32)
    located = await asker.locator.locate(model)
    assert len(located.known_ids()) == len(located.manifest.groups)


async def test_encodings_announced_later_are_taken_in(stored: Stored, tmp_path: Path) -> None:
    swarm, asker, model = stored
    located = await asker.locator.locate(model)
    before = len(located.known_ids())
    await swarm.nodes[1].publish(tmp_path / "m", k=1, n=3)
    await swarm.tell()
    assert len((await asker.locator.locate(model)).known_ids()) == 2 * before


async def test_adding_twice_keeps_one_and_a_strangers_group_is_refused(stored: Stored) -> None:
    _swarm, asker, model = stored
    located = await asker.locator.locate(model)
    known = located.encodings[0][0]
    assert located.add(known.envelope).id == known.id
    assert len(located.encodings[0]) == 1
    with pytest.raises(BadInput):
        located.add(b"nonsense")


async def test_what_lies_here_is_located_without_asking_and_forgotten(stored: Stored) -> None:
    swarm, asker, model = stored
    holder = swarm.nodes[1]
    for other in (swarm.nodes[0], swarm.nodes[2]):
        swarm.leave(other)
    located = await holder.locator.located_here(model)
    assert located is not None
    assert await holder.locator.located_here(model) is located
    holder.locator.forget(model)
    assert await holder.locator.located_here(model) is not located
    assert EncodingId(bytes(32)) not in located.known_ids()
    assert await asker.locator.located_here(model) is None


async def test_only_the_last_few_manifests_stay_in_memory(stored: Stored) -> None:
    _swarm, asker, model = stored
    located = await asker.locator.locate(model)
    for number in range(70):
        asker.locator.remember(ModelId(number.to_bytes(32, "big")), located.manifest, b"")
    assert len(asker.locator._located) == 64
    assert await asker.locator.locate(model) is not located
