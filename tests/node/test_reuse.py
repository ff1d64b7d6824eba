"""Equal groups are stored once: what a second publish sends, whom it believes, what holders announce and keep."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node.drain import Drainer
from node.hand_over import HandOver
from node.renew_leases import LeaseRenewer
from node.store.interface import ShardInfo
from node.store.leases import DAY
from protocol import limits
from protocol.errors import Conflict, Forbidden, NotFound
from protocol.ids import ModelId, model_from
from protocol.messages import GrantAsk
from tests.node.verb_fakes import VerbNode, VerbSwarm, full, quiet, small_model, verb_swarm
from tests.swarm.tools import digests


def other_version(path: Path, layer: int = 1) -> Path:
    """As small_model(seed 0), one number of one layer changed."""
    folder = small_model(path)
    data = bytearray((folder / "model.safetensors").read_bytes())
    size = int.from_bytes(data[:8], "little")
    begin, _ = json.loads(data[8 : 8 + size])[f"model.layers.{layer}.self_attn.q_proj.weight"]["data_offsets"]
    data[8 + size + begin] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    return folder


@dataclass
class Two:
    """Two versions of a model: the first is published by the first of six nodes."""

    swarm: VerbSwarm
    first: Path
    second: Path
    done: dict[str, Any]

    @property
    def model(self) -> ModelId:
        return model_from(self.done["model_id"])

    def lying(self) -> set[ShardInfo]:
        return {info for node in self.swarm.nodes for info in node.transfer.store.list_shards()}

    async def publish(self, node: VerbNode, **options: Any) -> dict[str, Any]:
        await self.swarm.tell()
        done = await node.publish(self.second, name="little", version="2", **options)
        await self.swarm.tell()
        return done

    async def fetched(self, model: str, folder: Path, target: Path) -> None:
        await self.swarm.nodes[5].fetcher.fetch(model, target, quiet)
        assert digests(target) == digests(folder)


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    async with verb_swarm(6, tmp_path) as swarm:
        first, second = small_model(tmp_path / "little"), other_version(tmp_path / "other")
        yield Two(swarm, first, second, await swarm.nodes[0].publish(first))


async def test_a_second_version_stores_what_changed_and_both_come_back(two: Two, tmp_path: Path) -> None:
    node, before = two.swarm.nodes[0], two.lying()
    node.transfer.encoded.clear()
    done = await two.publish(node)
    fresh = two.lying() - before
    assert node.transfer.encoded == [2]  # layer.1; the files, headers included, are the same
    assert len(fresh) == 6
    assert done["durable"] == done["shards"] == 6 * done["groups"]
    assert done["stored_bytes"] - done["saved_bytes"] == sum(info.bytes for info in fresh)
    assert not node.transfer.fetches  # its own word is enough
    await two.fetched(two.done["model_id"], two.first, tmp_path / "one")
    await two.fetched(done["model_id"], two.second, tmp_path / "two")


async def test_what_two_models_share_is_announced_and_reported_for_both(two: Two) -> None:
    done = await two.publish(two.swarm.nodes[0])
    for node in two.swarm.nodes:
        views = [two.swarm.board.holdings[node.peer, model] for model in (two.model, model_from(done["model_id"]))]
        assert [held.group for held in views[0].held] == [held.group for held in views[1].held] == list(range(done["groups"]))
        shared = {held.encoding for held in views[0].held} & {held.encoding for held in views[1].held}
        assert len(shared) == done["groups"] - 1
        status = await node.reporter.status()
        assert [line["groups"] for line in status["holdings"]] == [done["groups"]] * 2
        lying = node.transfer.store.list_shards()
        assert status["space"]["saved"] == sum(info.bytes for info in lying if info.key.encoding in shared)


@pytest.mark.parametrize("forgotten", [0, 1])
async def test_forgetting_one_leaves_the_other_whole(two: Two, tmp_path: Path, forgotten: int) -> None:
    done = await two.publish(two.swarm.nodes[0])
    models = [two.done["model_id"], done["model_id"]]
    for node in two.swarm.nodes:
        await node.transfer.forget(model_from(models[forgotten]))
        node.locator.forget(model_from(models[forgotten]))
    await two.swarm.tell()
    assert {model for _, model in two.swarm.board.holdings} == {model_from(models[1 - forgotten])}
    await two.fetched(models[1 - forgotten], [two.first, two.second][1 - forgotten], tmp_path / "back")
    for node in two.swarm.nodes:
        await node.transfer.forget(model_from(models[1 - forgotten]))
        assert node.transfer.store.space().used == 0


async def test_somebody_elses_encoding_is_decoded_compared_and_then_taken(two: Two, tmp_path: Path) -> None:
    other = two.swarm.nodes[3]
    done = await two.publish(other)
    assert (other.transfer.fetches, len(other.transfer.encoded)) == (done["groups"] - 1, 1)
    assert done["durable"] == done["shards"]
    again = await two.publish(other)
    assert (other.transfer.fetches, again["durable"]) == (done["groups"] - 1, again["shards"]), "compared once"
    await two.fetched(done["model_id"], two.second, tmp_path / "back")


async def test_one_that_decodes_to_other_bytes_is_not_taken_and_its_signer_blamed(tmp_path: Path) -> None:
    async with verb_swarm(6, tmp_path) as swarm:
        swarm.nodes[0].transfer.lie = True
        first, second = small_model(tmp_path / "little"), other_version(tmp_path / "other")
        two = Two(swarm, first, second, await swarm.nodes[0].publish(first))
        done = await two.publish(swarm.nodes[3])
        assert len(swarm.nodes[3].transfer.encoded) == done["groups"]
        assert {blame["peer_id"] for blame in swarm.nodes[3].swarm.blames} == {swarm.nodes[0].peer}
        assert done["saved_bytes"] == 0
        await two.fetched(done["model_id"], two.second, tmp_path / "back")


async def test_missing_shards_of_it_are_made_again_and_sent(two: Two, tmp_path: Path) -> None:
    for node in two.swarm.nodes[4:]:
        for info in node.transfer.store.list_shards():
            node.transfer.store.drop_shard(info.key, "lost")
    other = two.swarm.nodes[3]
    done = await two.publish(other)
    assert done["durable"] == done["shards"]
    assert {info.owner for info in two.swarm.nodes[4].transfer.store.list_shards()} == {two.swarm.nodes[0].peer, other.peer}
    encodings = {info.key.encoding for info in two.lying()}
    assert len(encodings) == two.done["groups"] + 1, "under the encodings that were there"
    held = two.swarm.board.holdings[two.swarm.nodes[4].peer, two.model].held
    assert len(held) == done["groups"] - 1, "for the first model too"


async def test_with_fewer_than_r_shards_elsewhere_the_group_is_coded_anew(two: Two) -> None:
    for node in two.swarm.nodes[3:]:
        for info in node.transfer.store.list_shards():
            node.transfer.store.drop_shard(info.key, "lost")
    other = two.swarm.nodes[3]
    done = await two.publish(other)
    assert (done["durable"], done["saved_bytes"], len(other.transfer.encoded)) == (done["shards"], 0, done["groups"])


async def test_a_publish_that_fails_leaves_the_first_as_it_was(two: Two, tmp_path: Path) -> None:
    before = two.lying()
    for node in two.swarm.nodes[1:4]:
        node.transfer.refuse = full()
    with pytest.raises(Exception, match="nothing of it stays"):
        await two.publish(two.swarm.nodes[0])
    assert two.lying() == before
    await two.swarm.tell()
    assert {model for _, model in two.swarm.board.holdings} == {two.model}
    await two.fetched(two.done["model_id"], two.first, tmp_path / "back")


async def test_who_shares_renews_too(two: Two) -> None:
    other, holder = two.swarm.nodes[3], two.swarm.nodes[1]
    done = await two.publish(other)
    long_ago = {key: at - 40 * DAY for key, at in holder.transfer.store.renewed().items()}
    holder.transfer.store._renewed = dict(long_ago)  # type: ignore[attr-defined]
    await LeaseRenewer(other.peer, other.swarm, other.book).round()
    renewed = {key for key, at in holder.transfer.store.renewed().items() if at > long_ago[key]}
    assert renewed == {info.key for info in holder.transfer.store.list_shards(model_from(done["model_id"]))}


async def test_what_a_desk_refuses_to_share(two: Two, tmp_path: Path) -> None:
    done = await two.publish(two.swarm.nodes[0])
    asker, holder = two.swarm.nodes[2], two.swarm.nodes[1]
    info = holder.transfer.store.list_shards(two.model)[0]
    own = next(i for i in holder.transfer.store.list_shards(two.model) if len(holder.transfer.store.models()) and i.group == 2)
    ask, second = GrantAsk(info.key.encoding, [info.key.shard]), model_from(done["model_id"])
    with pytest.raises(NotFound, match="no such shard"):
        await asker.book.to_share(holder.peer, second, [GrantAsk(bytes(32), [0])])
    await asker.transfer.put_blob(two.swarm.nodes[0].transfer.store.get_blob(second) or b"")
    with pytest.raises(Exception, match="a group the model doesn't have"):
        await asker.book.to_share(holder.peer, second, [GrantAsk(own.key.encoding, [own.key.shard])])
    for number in range(limits.MAX_SHARDS // 4):
        holder.transfer.store.share(ModelId(number.to_bytes(32, "big")), [info.key.encoding])
    with pytest.raises(Conflict, match="belongs to 64 models"):
        await asker.book.to_share(holder.peer, ModelId(b"\xff" * 32), [ask])
    holder.puts.lends_storage = False
    with pytest.raises(Forbidden):
        await asker.book.to_share(holder.peer, second, [ask])


async def test_a_node_that_drains_hands_over_what_two_models_share_for_both(tmp_path: Path) -> None:
    async with verb_swarm(6, tmp_path) as swarm:
        first = await swarm.nodes[0].publish(small_model(tmp_path / "little"), k=2, n=4)
        await swarm.tell()
        second = await swarm.nodes[0].publish(other_version(tmp_path / "other"), name="little", version="2", k=2, n=4)
        await swarm.tell()
        models = [model_from(done["model_id"]) for done in (first, second)]

        def listed(model: ModelId) -> set[tuple[bytes, int]]:
            helds = [held for (_, of), view in swarm.board.holdings.items() if of == model for held in view.held]
            return {(held.encoding, shard) for held in helds for shard in held.shards}

        before, leaver = [listed(model) for model in models], swarm.nodes[1]
        assert {info.key.encoding for info in leaver.transfer.store.list_shards()} & {name for name, _ in before[0] & before[1]}
        known: Any = leaver.transfer
        hands = HandOver(leaver.peer, leaver.swarm, known, leaver.book, leaver.keeper)

        async def tell_space() -> None:
            """Nobody asks for it here."""

        await Drainer(leaver.view, known, leaver.puts, hands, tell_space).drain(quiet)
        assert leaver.transfer.store.list_shards() == []
        swarm.leave(leaver)
        await swarm.tell()
        assert [listed(model) for model in models] == before
