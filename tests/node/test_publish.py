"""Publish, end to end over the in-memory swarm: where shards land, what is refused, what a resume sends, what a failure leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node import publish
from node.channel import ChannelClosed
from node.publish import PublishRequest
from protocol.errors import BadInput, StorageFull
from protocol.ids import EncodingId, model_from
from tests.node.verb_fakes import VerbSwarm, full, merged_model, quiet, small_model, verb_swarm
from tests.support.wait import until


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_model(tmp_path / "little")


@pytest.fixture
async def six(tmp_path: Path) -> AsyncIterator[VerbSwarm]:
    async with verb_swarm(6, tmp_path) as swarm:
        yield swarm


def lying(swarm: VerbSwarm) -> int:
    return sum(len(node.transfer.store.list_shards()) for node in swarm.nodes)


async def test_every_group_lies_on_six_nodes_and_comes_back_bit_identical(six: VerbSwarm, model: Path, tmp_path: Path) -> None:
    done = await six.nodes[0].publish(model)
    groups = done["groups"]
    assert (done["shards"], done["durable"], done["peers"], done["survives_losses"]) == (6 * groups, 6 * groups, 6, 4)
    assert done["name"] == "alice/little@1"
    assert done["stored_bytes"] == sum(info.bytes for node in six.nodes for info in node.transfer.store.list_shards())
    for node in six.nodes:
        infos = node.transfer.store.list_shards()
        assert sorted(info.group for info in infos) == list(range(groups))
    await six.tell()
    for gone in six.nodes[:4]:
        six.leave(gone)
    asker = await six.add(tmp_path)
    fetched = await asker.fetcher.fetch(done["model_id"], tmp_path / "back", quiet)
    assert fetched["files"] == 3
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (model / name).read_bytes()


async def test_a_refusal_is_replaced_by_another_node(six: VerbSwarm, model: Path) -> None:
    six.nodes[3].transfer.refuse = full()
    done = await six.nodes[0].publish(model, k=2, n=5)
    assert done["durable"] == 5 * done["groups"]
    assert not six.nodes[3].transfer.store.list_shards()


async def test_a_node_without_room_is_never_asked_and_nothing_hangs(six: VerbSwarm, model: Path) -> None:
    six.change(six.nodes[2], storage_free=0)
    six.change(six.nodes[4], storage_free=None)
    async with asyncio.timeout(5):
        done = await six.nodes[0].publish(model, k=2, n=4)
        assert (done["durable"], done["peers"]) == (4 * done["groups"], 4)
        with pytest.raises(StorageFull):
            await six.nodes[0].publish(model, k=2, n=12)
    assert not six.nodes[2].transfer.store.list_shards()


async def test_when_enough_is_durable_the_rest_goes_on_without_the_command(
    six: VerbSwarm, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "AFTER_R", 0.1)
    node, slow = six.nodes[0], six.nodes[5]
    slow.transfer.takes.clear()
    done = await node.publish(model, k=2, n=6)
    groups = done["groups"]
    assert (done["shards"], done["durable"]) == (6 * groups, 5 * groups)
    await until(lambda: lying(six) == 5 * groups, 5, "as it said")
    [line] = (await node.reporter.status())["publishing"]
    assert (line["model_id"], line["name"], line["shards"], line["durable"]) == (done["model_id"], done["name"], 6 * groups, 5 * groups)
    slow.transfer.takes.set()
    await until(lambda: not node.unfinished.lines(), 5, "the rest has ended")
    assert lying(six) == 6 * groups
    assert not node.transfer.staged
    assert (await node.reporter.status())["publishing"] == []


@pytest.mark.parametrize("turns", range(6))
async def test_stopped_twice_nothing_stays_staged(six: VerbSwarm, model: Path, monkeypatch: pytest.MonkeyPatch, turns: int) -> None:
    """A client that leaves ends what it asked for, and so does the end of its connection."""
    node, slow = six.nodes[0], six.nodes[5]
    slow.transfer.takes.clear()
    real = node.transfer.list_staged

    async def in_its_time() -> dict[EncodingId, list[int]]:
        await asyncio.sleep(0.01)
        return await real()

    monkeypatch.setattr(node.transfer, "list_staged", in_its_time)
    publishing = asyncio.create_task(node.publish(model, k=2, n=6))
    await until(lambda: lying(six) >= 15, 5, "it is in the middle")
    assert node.transfer.staged
    publishing.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    await until(lambda: not node.transfer.staged, 5, "nothing staged")


@pytest.mark.parametrize("how", ["published again", "the node stops"])
async def test_a_rest_ends_with_the_next_publish_and_with_the_node(
    six: VerbSwarm, model: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(publish, "AFTER_R", 0.1)
    node, slow = six.nodes[0], six.nodes[5]
    slow.transfer.takes.clear()
    groups = (await node.publish(model, k=2, n=6))["groups"]
    assert node.unfinished.lines()
    if how == "published again":
        await six.tell()
        slow.transfer.takes.set()
        assert (await node.publish(model, k=2, n=6))["durable"] == 6 * groups
    else:
        await node.unfinished.close()
        assert lying(six) == 5 * groups
        assert six.board.cards
    assert not node.unfinished.lines()
    assert not node.transfer.staged


@pytest.mark.parametrize("dies_at", [("encode", 1), ("push", 1), ("push", 4)])
async def test_a_transfer_process_that_dies_costs_a_group_coded_again(six: VerbSwarm, model: Path, dies_at: tuple[str, int]) -> None:
    publisher = six.nodes[0]
    publisher.transfer.dies_at = {dies_at}
    done = await publisher.publish(model)
    assert (done["durable"], done["survives_losses"]) == (6 * done["groups"], 4)
    assert not publisher.transfer.staged
    assert len(publisher.transfer.encoded) > done["groups"]


async def test_one_that_dies_again_and_again_is_an_error(six: VerbSwarm, model: Path) -> None:
    six.nodes[0].transfer.dies_at = {("encode", at) for at in range(1, 100)}
    with pytest.raises(ChannelClosed):
        await six.nodes[0].publish(model)
    assert lying(six) == 0


async def test_too_few_homes_names_refusals_and_leaves_nothing(six: VerbSwarm, model: Path) -> None:
    for node in six.nodes[1:4]:
        node.transfer.refuse = full("quota used up")
    with pytest.raises(StorageFull) as caught:
        await six.nodes[0].publish(model, k=2, n=6)
    assert caught.value.status == 507
    refusals = caught.value.details["refusals"]
    assert {refusals[node.peer] for node in six.nodes[1:4]} == {"quota used up"}
    assert "4 are needed" in caught.value.message
    assert lying(six) == 0
    assert not six.nodes[0].transfer.staged
    assert six.nodes[0].transfer.store.space().used == 0
    assert not six.board.cards


async def test_a_resume_sends_nothing_twice(six: VerbSwarm, model: Path) -> None:
    first = await six.nodes[0].publish(model)
    await six.tell()
    before = list(six.nodes[0].transfer.pushed)
    six.nodes[0].transfer.encoded.clear()
    again = await six.nodes[0].publish(model)
    assert six.nodes[0].transfer.pushed == before
    assert not six.nodes[0].transfer.encoded
    for name in ("model_id", "shards", "durable", "peers", "stored_bytes", "survives_losses"):
        assert again[name] == first[name], name


async def test_a_resume_sends_only_what_is_missing(six: VerbSwarm, model: Path) -> None:
    await six.nodes[0].publish(model)
    lost = six.nodes[2].transfer.store
    for info in lost.list_shards()[:2]:
        lost.drop_shard(info.key, "lost")
    await six.tell()
    six.nodes[0].transfer.pushed.clear()
    again = await six.nodes[0].publish(model)
    assert len(six.nodes[0].transfer.pushed) == 2
    assert again["durable"] == again["shards"]
    assert again["stored_bytes"] == sum(info.bytes for node in six.nodes for info in node.transfer.store.list_shards())


async def test_publishing_again_when_nodes_are_away_harms_nothing_that_lies_there(six: VerbSwarm, model: Path) -> None:
    await six.nodes[0].publish(model)
    await six.tell()
    for gone in six.nodes[3:]:
        six.leave(gone)
    with pytest.raises(StorageFull):
        await six.nodes[0].publish(model, k=2, n=6)
    assert all(node.transfer.store.list_shards() for node in six.nodes)


async def test_a_cancelled_publish_leaves_no_staged_shards_and_the_next_resumes(six: VerbSwarm, model: Path) -> None:
    publisher = six.nodes[0]
    held = asyncio.Event()
    pushed: list[Any] = []

    async def slow(job: Any) -> None:
        pushed.append(job)
        await held.wait()

    ordinary = publisher.transfer.push_shard
    publisher.transfer.push_shard = slow  # type: ignore[method-assign]
    task = asyncio.create_task(publisher.publish(model))
    await until(lambda: bool(pushed), 5.0, "a push has begun")
    assert publisher.transfer.staged
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not publisher.transfer.staged
    publisher.transfer.push_shard = ordinary  # type: ignore[method-assign]
    await six.tell()
    done = await publisher.publish(model)
    assert done["durable"] == done["shards"]


async def test_cancelled_right_after_coding_leaves_no_staged_shards(six: VerbSwarm, model: Path) -> None:
    publisher = six.nodes[0]
    stuck = asyncio.Event()

    async def never(model: Any, blobs: Any) -> None:
        stuck.set()
        await asyncio.Event().wait()

    publisher.transfer.add_model = never  # type: ignore[method-assign]
    task = asyncio.create_task(publisher.publish(model))
    await stuck.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not publisher.transfer.staged


@pytest.mark.parametrize("options", [{"k": 2}, {"n": 3}, {"k": 3, "n": 2}, {"k": 0, "n": 2}, {"k": 2, "n": 257}])
async def test_impossible_k_and_n_are_refused_before_anything_is_read(six: VerbSwarm, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"--k and --n|k <= n"):
        await six.nodes[0].publish(tmp_path / "absent", **options)


@pytest.mark.parametrize("options", [{"name": "a/b"}, {"name": "x" * 97}, {"version": "one two"}])
async def test_a_name_that_cant_be_is_refused_before_anything_is_stored(six: VerbSwarm, model: Path, options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="can't be a name"):
        await six.nodes[0].publish(model, **options)
    assert lying(six) == 0


async def test_equal_layers_are_stored_once_and_read_twice(six: VerbSwarm, tmp_path: Path) -> None:
    model = merged_model(tmp_path / "merged")
    done = await six.nodes[0].publish(model)
    assert done["durable"] == done["shards"]
    assert done["stored_bytes"] == sum(info.bytes for node in six.nodes for info in node.transfer.store.list_shards())
    assert len(six.nodes[0].transfer.encoded) == done["groups"] - 1
    await six.tell()
    await six.nodes[5].fetcher.fetch(done["model_id"], tmp_path / "back", quiet)
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert (await six.nodes[0].reporter.storage(model_from(done["model_id"])))["survives_losses"] == 4


async def test_an_announced_shard_that_is_gone_is_sent_again(six: VerbSwarm, model: Path) -> None:
    await six.nodes[0].publish(model)
    await six.tell()
    lost = six.nodes[3].transfer.store
    (gone, *_kept) = lost.list_shards()
    lost.drop_shard(gone.key, "lost without a word")
    six.nodes[0].transfer.pushed.clear()
    again = await six.nodes[0].publish(model)
    assert [(name, shard) for name, shard, _peer in six.nodes[0].transfer.pushed] == [(gone.key.encoding, gone.key.shard)]
    assert again["durable"] == again["shards"]


async def test_taking_back_after_a_failure_spares_what_others_put(six: VerbSwarm, model: Path) -> None:
    await six.nodes[1].publish(model)
    await six.tell()
    before = {(info.key, info.owner) for node in six.nodes for info in node.transfer.store.list_shards()}
    for node in six.nodes[2:5]:
        node.transfer.refuse = full()
    with pytest.raises(StorageFull):
        await six.nodes[0].publish(model, k=3, n=6)  # another code, so that what lies there can't be taken up
    assert {(info.key, info.owner) for node in six.nodes for info in node.transfer.store.list_shards()} == before


async def test_a_failed_resume_takes_the_interrupted_beginning_back_too(six: VerbSwarm, model: Path) -> None:
    await six.nodes[0].publish(model)
    six.board.cards.clear()  # the interrupted one never came to its card
    await six.tell()
    for node in six.nodes[1:4]:
        node.transfer.refuse = full()
        for info in node.transfer.store.list_shards():
            node.transfer.store.drop_shard(info.key, "lost")
    with pytest.raises(StorageFull):
        await six.nodes[0].publish(model)
    assert lying(six) == 0


async def test_what_a_holder_dropped_is_no_longer_announced(six: VerbSwarm, model: Path) -> None:
    for node in six.nodes[1:4]:
        node.transfer.refuse = full()
    changed: list[object] = []
    six.nodes[4].keeper.changed = changed.append  # type: ignore[assignment,method-assign]
    with pytest.raises(StorageFull):
        await six.nodes[0].publish(model, k=2, n=6)
    assert changed


async def test_published_again_under_its_name_it_keeps_its_first_day(six: VerbSwarm, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await six.nodes[0].publish(model, name="named", version="2")
    await six.nodes[0].publish(model, name="named", version="3")
    first, other = (view.card for view in six.board.cards)
    assert (first.updated, other.updated) == (None, None)
    monkeypatch.setattr("node.publish.time.time", lambda: first.created + 500.0)
    await six.nodes[0].publish(model, name="named", version="2", description="once more")
    again = six.board.cards[-1].card
    assert (again.created, again.updated, again.description) == (first.created, first.created + 500, "once more")


async def test_the_card_says_what_was_published(six: VerbSwarm, model: Path) -> None:
    done = await six.nodes[0].publish(model, name="named", version="2")
    (view,) = six.board.cards
    assert (view.publisher, view.card.full_name()) == (six.nodes[0].peer, "alice/named@2")
    assert view.card.model == model_from(done["model_id"])
    assert view.card.size == done["bytes"]


async def test_progress_is_told(six: VerbSwarm, model: Path) -> None:
    events: list[dict[str, Any]] = []

    async def notify(event: dict[str, Any]) -> None:
        events.append(event)

    await six.nodes[0].publisher.publish(PublishRequest(path=model), notify)
    stored = [event for event in events if event.get("stage") == "store"]
    assert stored[-1]["done"] == stored[-1]["total"]
    assert [event["done"] for event in stored] == sorted(event["done"] for event in stored)


async def test_nodes_known_for_less_than_a_day_get_one_shard_of_a_group_together(six: VerbSwarm, model: Path) -> None:
    publisher = six.nodes[0]
    publisher.swarm.trust_all = False
    ordinary = publisher.swarm.view
    publisher.swarm.view = lambda peer: replace(ordinary(peer), new=True)  # type: ignore[method-assign]
    with pytest.raises(StorageFull, match="needs 3 nodes") as caught:
        await publisher.publish(model, k=2, n=4)
    assert "of the 5 known for less than a day only one counts" in (caught.value.hint or "")
    done = await publisher.publish(model)
    assert (done["shards"], done["durable"]) == (2 * done["groups"], 2 * done["groups"])
    assert len(publisher.transfer.store.list_shards()) == done["groups"]


async def test_an_encoding_commits_to_more_shards_than_are_made(six: VerbSwarm, model: Path, tmp_path: Path) -> None:
    done = await six.nodes[0].publish(model, k=2, n=3, n_max=6)
    assert done["shards"] == done["durable"] == 3 * done["groups"]
    await six.tell()
    told = await six.nodes[0].reporter.holders(model_from(done["model_id"]))
    assert {(group["k"], group["n"], group["n_max"]) for group in told["groups"]} == {(2, 3, 6)}
    coded = len(six.nodes[0].transfer.encoded)
    await six.nodes[0].publish(model, k=2, n=3)
    assert len(six.nodes[0].transfer.encoded) == coded, "what commits to more serves who asks for less"
    await six.nodes[0].publish(model, k=2, n=3, n_max=5)
    assert len(six.nodes[0].transfer.encoded) == coded
    assert (await six.nodes[5].fetcher.fetch(done["model_id"], tmp_path / "back", quiet))["bytes"] == done["bytes"]


@pytest.mark.parametrize("n_max", [0, 2, 7])
async def test_committing_to_fewer_than_n_or_more_than_twice_n_is_refused(six: VerbSwarm, model: Path, n_max: int) -> None:
    with pytest.raises(BadInput, match="n_max"):
        await six.nodes[0].publish(model, k=2, n=3, n_max=n_max)
