"""What is loaded in the worker: shared, let go when room is needed, refused with numbers, given back whatever fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from node.assemble import GroupBytes
from node.engines import Engines
from node.gather import tensor_places
from node.locate import Located
from node.model_cost import StageCost
from node.model_folder import scan
from node.model_manifest import build_manifest
from node.stage_room import UNUSED, StageRoom, stage_key
from node.waiting_line import IMPATIENT, PATIENT, Asker
from protocol.errors import BadInput, Busy, MfError, Unavailable
from protocol.ids import ModelId
from protocol.manifest import model_id
from protocol.messages import Sampling
from runtime.interface import DeviceTold, Left, LoadStage, LoadText, Opened, OpenSequence, StageLoaded, TextLoaded
from tests.node.verb_fakes import VerbNode, small_model, verb_swarm
from tests.support.wait import until


class FakeWorker:
    """Loads nothing; `restart` begins a new life."""

    def __init__(self) -> None:
        self.generation = 0
        self.loads: list[LoadStage] = []
        self.unloads: list[str] = []
        self.texts: list[LoadText] = []
        self.open: set[str] = set()
        self.left: list[Left] = []
        self.fault: Exception | None = None
        self.open_fault: Exception | None = None
        self.cost: Any = None
        self.killed = self.crashed = False
        self.ended = "the worker ended (signal 11, SIGSEGV)"
        self.dies_of = ""
        self.used = 1_000
        self.device: DeviceTold | None = None
        self.grows = 0
        self.hearing: list[Callable[[MfError], None]] = []
        self.may_load = asyncio.Event()
        self.may_load.set()

    def when_ended(self, told: Callable[[MfError], None]) -> None:
        self.hearing.append(told)

    def forget(self, told: Callable[[MfError], None]) -> None:
        if told in self.hearing:
            self.hearing.remove(told)

    @property
    def running(self) -> bool:
        return self.generation > 0

    life = 1

    async def start(self) -> None:
        self.generation = self.generation or self.life

    def memory(self) -> int | None:
        return self.used if self.running else None

    async def load_text(self, params: LoadText) -> TextLoaded:
        self.texts.append(params)
        return TextLoaded(eos=[2], context=128, has_template=False)

    async def load_stage(self, params: LoadStage, fds: list[int]) -> StageLoaded:
        await asyncio.sleep(0)
        await self.may_load.wait()
        if self.fault:
            raise self.fault
        assert len(fds) == len(params.lengths)
        self.loads.append(params)
        self.used += self.grows
        if params.engine == self.dies_of:
            self.generation, self.killed, self.life = 0, True, self.generation + 1
            raise Unavailable(self.ended)
        engine = "torch" if params.engine == "torch" else "llama"
        told = StageLoaded(bytes=self.cost.total(params.first, params.end, 0), seconds=0.0, self_test="none")
        told.engine, told.why, told.lean = engine, "by the worker", f"run lean {params.end}" if engine == "torch" else ""
        return told

    async def unload(self, stage: str) -> None:
        self.unloads.append(stage)

    async def open_sequence(self, params: OpenSequence) -> Opened:
        if self.open_fault:
            raise self.open_fault
        self.open.add(params.session)
        return Opened(params.positions)

    async def close_sequence(self, session: str, left: Left | None = None) -> None:
        self.open.discard(session)
        if left is not None:
            self.left.append(left)


class Setting:
    """A room over a model published in a swarm of one. `memory` bytes, enough for `times` the whole model by default."""

    def __init__(self, node: VerbNode, located: Located) -> None:
        self.located = located
        self.cost = StageCost(located.manifest, "bf16")
        self.worker = FakeWorker()
        self.worker.cost = self.cost
        self.node = node
        self.room = self.with_memory(1 << 40)

    def with_memory(self, memory: int, engines: Engines | None = None) -> StageRoom:
        worker: Any = self.worker
        self.room = StageRoom(worker, self.node.assembler, memory, engines=engines)
        return self.room

    def weights(self, first: int, end: int) -> int:
        return self.cost.total(first, end, 0)

    def kv(self, first: int, end: int, tokens: int = 16) -> int:
        return self.cost.total(first, end, tokens) - self.weights(first, end)

    def session(self, first: int, end: int, name: str = "s", tokens: int = 16, asker: Asker = IMPATIENT) -> Any:
        opening = OpenSequence(stage="", session=name, tokens_max=tokens, sampling=Sampling())
        return self.room.sequence(self.located, first, end, "bf16", opening, asker)


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    async with verb_swarm(1, tmp_path) as swarm:
        done = await swarm.nodes[0].publish(small_model(tmp_path / "m"))
        await swarm.tell()
        located = await swarm.nodes[0].locator.locate(swarm.nodes[0].swarm.resolve(done["model_id"]))
        yield Setting(swarm.nodes[0], located)


async def test_sessions_at_once_share_one_stage(setting: Setting) -> None:
    async with AsyncExitStack() as stack:
        enter = [stack.enter_async_context(setting.session(0, 3, f"s{number}")) for number in range(4)]
        stages = [hold.stage for hold in await asyncio.gather(*enter)]
        assert len({id(stage) for stage in stages}) == 1
        assert (stages[0].users, len(setting.worker.loads), len(setting.worker.texts)) == (4, 1, 1)
        assert len(setting.worker.open) == 4
        assert setting.room.free() == setting.room.memory - stages[0].bytes - 4 * setting.kv(0, 3)
    assert stages[0].users == 0
    assert not setting.worker.open
    assert setting.room.free() == setting.room.memory


async def test_the_first_session_tells_how_long_loading_took_the_next_doesnt(setting: Setting) -> None:
    async with setting.session(0, 3) as hold:
        assert hold.stage.timings.keys() == {"assemble", "load"}
    async with setting.session(0, 3) as hold:
        assert hold.stage.timings == {}


async def test_the_longest_unused_stage_goes_first(setting: Setting) -> None:
    # a stage with an end of the model is larger than one in the middle
    setting.with_memory(setting.weights(0, 1) + setting.weights(1, 2) + setting.weights(2, 3) + setting.kv(0, 3))
    for first in (1, 0, 1):
        async with setting.session(first, first + 1):
            pass
    async with setting.session(2, 3):
        pass
    assert not setting.worker.unloads
    async with setting.session(1, 3):
        pass
    assert [name.partition("[")[2] for name in setting.worker.unloads][:1] == ["0:1]bf16"]


async def test_a_stage_in_use_is_never_unloaded_and_the_refusal_has_numbers(setting: Setting) -> None:
    needed = setting.weights(1, 3) + setting.kv(1, 3)
    setting.with_memory(setting.weights(0, 1) + setting.kv(0, 1) + setting.weights(1, 2) + setting.kv(1, 2) + 10)
    async with setting.session(1, 2, "idle"):
        pass
    async with setting.session(0, 1, "busy"):
        with pytest.raises(Unavailable, match=f"takes {needed} bytes") as caught:
            async with setting.session(1, 3, "more"):
                pass
        assert caught.value.details == {"needed": needed, "free": setting.weights(1, 2) + setting.kv(1, 2) + 10}
    assert not setting.worker.unloads, "nothing goes for a request that can't fit anyway"


async def test_kv_room_counts_for_a_loaded_stage_too(setting: Setting) -> None:
    setting.with_memory(setting.weights(0, 3) + setting.kv(0, 3) + setting.kv(0, 3) // 2)
    async with setting.session(0, 3, "one"):
        with pytest.raises(Busy, match=f"stage takes {setting.kv(0, 3)} bytes.*no room just now") as caught:
            async with setting.session(0, 3, "two"):
                pass
        assert caught.value.details.keys() == {"needed", "free", "position", "retry_after"}
        async with setting.session(0, 3, "small", tokens=4):
            pass
    async with setting.session(0, 3, "two"):
        pass
    assert len(setting.worker.loads) == 1


async def test_in_a_new_life_of_the_worker_nothing_is_loaded(setting: Setting) -> None:
    async with setting.session(0, 3):
        pass
    setting.worker.generation += 1
    async with setting.session(0, 3):
        assert len(setting.room.loaded()) == 1
    assert len(setting.worker.loads) == len(setting.worker.texts) == 2


async def test_a_session_of_a_dead_worker_ends_without_harm(setting: Setting) -> None:
    async with setting.session(0, 3, "old"):
        setting.worker.generation += 1
        async with setting.session(0, 3, "new") as hold:
            assert hold.stage.users == 1
    assert setting.room.free() == setting.room.memory
    assert [stage.users for stage in setting.room.loaded()] == [0]


@pytest.mark.parametrize(("crashed", "told"), [(False, "run lean 3"), (True, "")])
async def test_a_stage_compared_before_isnt_again_unless_the_worker_crashed(crashed: bool, told: str, setting: Setting) -> None:
    async with setting.session(0, 3):
        pass
    setting.worker.generation, setting.worker.crashed = setting.worker.generation + 1, crashed
    for end in (2, 3):
        async with setting.session(0, end):
            pass
    assert [load.checked for load in setting.worker.loads] == ["", "", told]


async def test_a_session_hears_at_once_that_its_worker_ended(setting: Setting) -> None:
    heard: list[MfError] = []
    async with setting.session(0, 3, "old") as hold:
        (told,) = setting.worker.hearing
        told(Unavailable(setting.worker.ended))
        told(Unavailable("once more"))
        hold.when_lost(heard.append)
        assert [error.message for error in heard] == [setting.worker.ended]
    assert not setting.worker.hearing


@pytest.mark.parametrize("end", [3, 2])
async def test_a_load_goes_on_though_its_asker_left(end: int, setting: Setting) -> None:
    """Whoever is next finds it done, or waits until it is: never two loads at once."""
    setting.worker.may_load.clear()

    async def enter(end: int) -> None:
        async with setting.session(0, end, f"to {end}"):
            pass

    left = asyncio.create_task(enter(3))
    await until(lambda: bool(setting.worker.texts), 5, "the load begins")
    left.cancel()
    await asyncio.wait([left])
    following = asyncio.create_task(enter(end))
    await asyncio.wait([following], timeout=0.05)
    assert not setting.worker.loads
    setting.worker.may_load.set()
    await following
    assert [load.end for load in setting.worker.loads] == ([3] if end == 3 else [3, 2])
    assert all(stage.users == 0 for stage in setting.room.loaded())
    assert setting.room.free() == setting.room.memory


async def test_a_stage_is_got_ready_in_the_room_of_those_that_nobody_uses_any_more(setting: Setting) -> None:
    setting.with_memory(setting.weights(0, 3))
    async with setting.session(1, 2):
        with pytest.raises(Busy, match="may never be used"):
            await setting.room.prepare(setting.located, 0, 3, "bf16")
    with pytest.raises(Busy):  # it was in use a moment ago
        await setting.room.prepare(setting.located, 0, 3, "bf16")
    (unused,) = setting.room.loaded()
    unused.used_at -= UNUSED
    setting.room.lasting = stage_key(setting.located, 1, 2, "bf16")
    with pytest.raises(Busy):  # others are told that it is here
        await setting.room.prepare(setting.located, 0, 3, "bf16")
    setting.room.lasting = None
    assert (await setting.room.prepare(setting.located, 0, 3, "bf16")).keys() == {"assemble", "load"}
    assert await setting.room.prepare(setting.located, 0, 3, "bf16") == {}
    assert [(stage.first, stage.end) for stage in setting.room.loaded()] == [(0, 3)]
    async with setting.session(1, 2):  # a session has more of a right to the room
        assert [(stage.first, stage.end) for stage in setting.room.loaded()] == [(1, 2)]


@pytest.mark.parametrize("where", ["fault", "open_fault"])
async def test_what_fails_gives_its_room_back(setting: Setting, where: str) -> None:
    setattr(setting.worker, where, MfError("no"))
    with pytest.raises(MfError, match="no"):
        async with setting.session(0, 3):
            pass
    assert setting.room.free() == setting.room.memory
    setattr(setting.worker, where, None)
    async with setting.session(0, 3) as hold:
        assert hold.stage.users == 1


async def test_a_fault_inside_a_session_gives_its_room_back(setting: Setting) -> None:
    with pytest.raises(RuntimeError):
        async with setting.session(0, 3):
            raise RuntimeError
    assert setting.room.free() == setting.room.memory
    assert not setting.worker.open


async def test_a_group_that_cant_be_had_leaves_no_other_open(setting: Setting) -> None:
    made: list[GroupBytes] = []
    ordinary = setting.node.assembler.group

    async def group(located: Located, number: int) -> GroupBytes:
        if number == 2:
            await until(lambda: bool(made), 2.0, "another group is there")
            raise Unavailable("too few shards")
        made.append(await ordinary(located, number))
        return made[-1]

    setting.node.assembler.group = group  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="too few"):
        async with setting.session(0, 3):
            pass
    assert made
    assert all(done.fd == -1 for done in made)


async def test_the_texts_are_the_files_bytes(setting: Setting, tmp_path: Path) -> None:
    await setting.room.text(setting.located)
    await setting.room.text(setting.located)
    (loaded,) = setting.worker.texts
    assert loaded.files == {name: (tmp_path / "m" / name).read_bytes() for name in ("config.json", "generation_config.json")}


async def test_a_model_without_config_can_be_fetched_not_run(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "bare")
    (folder / "config.json").unlink()
    try:
        manifest, data = build_manifest(scan(folder), lambda done, total: None)
    except BadInput:
        return  # such a folder isn't even published
    worker: Any = FakeWorker()
    assembler: Any = None
    with pytest.raises(BadInput, match="can be fetched, not run"):
        await StageRoom(worker, assembler, 1).text(Located(ModelId(model_id(data)), manifest, data))


async def test_places_name_each_tensor_where_it_lies(setting: Setting) -> None:
    manifest = setting.located.manifest
    places = tensor_places(manifest, [3, 1])
    assert {place.group for place in places} == {0, 1}
    for place in places:
        tensor = next(tensor for tensor in manifest.tensors if tensor.name == place.name)
        assert (tensor.cuts[0].group, tensor.cuts[0].at) == ([3, 1][place.group], place.at)


async def test_an_encoder_is_the_whole_model_under_a_name_of_its_own(setting: Setting) -> None:
    layers = len(setting.cost._layers)
    async with setting.session(0, layers), setting.room.encoder(setting.located, "embed", "bf16") as stage:
        assert [load.task for load in setting.worker.loads] == ["generate", "embed"]
        assert (setting.worker.loads[1].first, setting.worker.loads[1].end) == (0, layers)
        assert stage.key.endswith("bf16embed")
        async with setting.room.encoder(setting.located, "embed", "bf16") as again:
            assert again is stage
    assert len(setting.worker.loads) == 2
    assert stage.users == 0


async def test_an_encoder_in_use_isnt_let_go(setting: Setting) -> None:
    layers = len(setting.cost._layers)
    setting.with_memory(setting.weights(0, layers))
    async with setting.room.encoder(setting.located, "embed", "bf16"):
        with pytest.raises(Busy, match="this stage takes"):
            async with setting.session(0, 1):
                pass
    async with setting.session(0, 1):
        assert setting.worker.unloads == [setting.worker.loads[0].stage]


async def crowd(stack: AsyncExitStack, setting: Setting, count: int) -> list[str]:
    """The engines that so many sessions at once run on, in the order they came."""
    return [(await stack.enter_async_context(setting.session(0, 3, f"s{number}"))).stage.engine for number in range(count)]


async def test_a_crowd_goes_beside_the_first_few_through_torch(setting: Setting) -> None:
    setting.with_memory(1 << 40, Engines("auto"))
    async with AsyncExitStack() as stack:
        assert await crowd(stack, setting, 6) == ["llama"] * 4 + ["torch"] * 2
        assert setting.room.engine(setting.located, 0, 3, "bf16", 16).engine == "torch"
    assert [load.engine for load in setting.worker.loads] == ["auto", "torch"]
    assert setting.room.engine(setting.located, 0, 3, "bf16", 16).why == "by the worker"
    setting.room.compiled = {stage_key(setting.located, 0, 3, "bf16"): "single rows compiled"}.get
    assert setting.room.engine(setting.located, 0, 3, "bf16", 16).why == "by the worker; single rows compiled"
    assert {stage.key.endswith("+torch") for stage in setting.room.loaded()} == {True, False}
    async with AsyncExitStack() as stack:
        assert await crowd(stack, setting, 5) == ["llama"] * 4 + ["torch"]
        (first,) = (stage for stage in setting.room.loaded() if stage.engine == "llama")
        first.users -= 4  # their replies end
        assert setting.room.engine(setting.located, 0, 3, "bf16", 16).engine == "llama"
        first.users += 4


@pytest.mark.parametrize(("asked", "engines"), [("auto", ["torch"]), ("llama", ["llama"])])
async def test_memory_for_one_copy_has_one_copy(asked: str, engines: list[str], setting: Setting) -> None:
    setting.with_memory(setting.weights(0, 3) + setting.kv(0, 3), Engines(asked))
    async with AsyncExitStack() as stack:
        assert await crowd(stack, setting, 1) == engines
    setting.with_memory(setting.weights(0, 3) + 6 * setting.kv(0, 3), Engines(asked))
    async with AsyncExitStack() as stack:
        assert set(await crowd(stack, setting, 6)) == {"llama"}
    assert len(setting.room.loaded()) == 1


async def test_a_load_that_kills_the_worker_is_done_again_by_torch_and_remembered(setting: Setting, tmp_path: Path) -> None:
    engines = Engines("llama", tmp_path)
    setting.with_memory(1 << 40, engines)
    setting.worker.dies_of = "llama"
    async with setting.session(0, 3) as hold:
        assert hold.stage.engine == "torch"
    assert [load.engine for load in setting.worker.loads] == ["llama", "torch"]
    setting.with_memory(1 << 40, Engines("llama", tmp_path))
    async with setting.session(0, 3):
        pass
    assert [load.engine for load in setting.worker.loads] == ["llama", "torch", "torch"]
    assert "SIGSEGV" in setting.room.engine(setting.located, 0, 3, "bf16", 16).why


async def test_a_worker_that_was_stopped_while_loading_blames_nobody(setting: Setting, tmp_path: Path) -> None:
    engines = Engines("llama", tmp_path)
    setting.with_memory(1 << 40, engines)
    setting.worker.fault = Unavailable("the worker ended (exit code 0)")
    with pytest.raises(Unavailable, match="exit code 0"):
        async with setting.session(0, 3):
            pass
    assert engines.choose(setting.located, "bf16").engine == "llama"


@pytest.mark.parametrize(("crashed", "engine"), [(True, "torch"), (False, "llama")])
async def test_a_crash_in_the_middle_is_laid_to_what_llama_ran(crashed: bool, engine: str, setting: Setting, tmp_path: Path) -> None:
    engines = Engines("auto", tmp_path)
    setting.with_memory(1 << 40, engines)
    async with setting.session(0, 3):
        setting.worker.generation, setting.worker.crashed = 2, crashed
    async with setting.session(0, 3) as hold:
        assert hold.stage.engine == engine


async def entered(opened: Any, order: list[str], name: str) -> None:
    async with opened:
        order.append(name)


async def test_sessions_and_whole_replies_stand_in_one_line_and_hear_their_place(setting: Setting) -> None:
    layers = len(setting.cost._layers)
    setting.with_memory(setting.weights(0, layers) + setting.kv(0, layers))
    order: list[str] = []
    heard: dict[str, list[int]] = {name: [] for name in ("stage", "reply", "begun", "claimed")}

    def asker(name: str, **more: Any) -> Asker:
        return Asker(name, heard[name].append, **more)

    async with setting.session(0, layers, "running"):
        opened = {
            "stage": setting.session(0, layers, "stage", asker=asker("stage")),
            "reply": setting.room.reply(setting.located, "bf16", "reply", 16, asker("reply")),
            "claimed": setting.session(0, layers, "claimed", asker=asker("claimed", begun=True, believed=False)),
            "begun": setting.session(0, layers, "begun", asker=asker("begun", begun=True)),
        }
        waiting = []
        for name, one in opened.items():
            waiting.append(asyncio.create_task(entered(one, order, name)))
            await until(lambda name=name: bool(heard[name]), 2.0, "it waits")  # type: ignore[misc]
        with pytest.raises(Busy, match="just now"):
            async with setting.session(0, layers, "impatient"):
                pass
        assert not order
    await asyncio.gather(*waiting)
    assert order == ["begun", "stage", "reply", "claimed"]
    assert heard["begun"] == [1]
    assert heard["stage"][0] == 1
    assert 2 in heard["stage"], "the one that has begun came before it"
    assert setting.room.free() == setting.room.memory
    assert not setting.worker.open


async def test_an_encoder_that_ends_lets_the_next_in_at_once(setting: Setting) -> None:
    layers, order = len(setting.cost._layers), []
    setting.with_memory(setting.weights(0, layers) + setting.kv(0, layers))
    async with setting.room.encoder(setting.located, "embed", "bf16"):
        waiting = asyncio.create_task(entered(setting.session(0, layers, asker=PATIENT), order, "in"))
        await until(lambda: len(setting.room.line) == 1 and setting.room.line._stuck, 2.0, "it waits")
    began = asyncio.get_running_loop().time()
    await waiting
    assert asyncio.get_running_loop().time() - began < 3.0, "not when the line looks again by itself"


async def test_what_the_worker_has_no_room_for_waits_too(setting: Setting) -> None:
    order: list[str] = []
    async with setting.session(0, 3, "running"):
        setting.worker.open_fault = Busy("no slots")
        waiting = asyncio.create_task(entered(setting.session(0, 3, "waits", asker=PATIENT), order, "in"))
        await until(lambda: len(setting.room.line) == 1 and setting.room.line._stuck, 2.0, "it waits")
        setting.worker.open_fault = None
    await waiting
    assert order == ["in"]
    setting.worker.open_fault = Busy("no slots")
    with pytest.raises(Busy, match=r"^no slots"):
        async with setting.session(0, 3, asker=PATIENT):
            pass
    assert setting.room.free() == setting.room.memory


async def test_a_session_that_is_given_up_in_line_leaves_nothing(setting: Setting) -> None:
    setting.with_memory(setting.weights(0, 3) + setting.kv(0, 3))
    async with setting.session(0, 3, "running"):
        waiting = asyncio.create_task(entered(setting.session(0, 3, "waits", asker=PATIENT), [], "in"))
        await until(lambda: len(setting.room.line) == 1, 2.0, "it waits")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert len(setting.room.line) == 0
        with pytest.raises(Unavailable, match="stage takes"):  # it wouldn't fit alone either
            async with setting.session(0, 3, "never", tokens=1 << 20, asker=PATIENT):
                pass
    assert setting.room.free() == setting.room.memory


async def test_sessions_that_come_while_a_stage_loads_arent_refused(setting: Setting) -> None:
    order: list[str] = []
    ordinary, loading = setting.worker.load_stage, asyncio.Event()

    async def slow(params: LoadStage, fds: list[int]) -> StageLoaded:
        await loading.wait()
        return await ordinary(params, fds)

    setting.worker.load_stage = slow  # type: ignore[method-assign]
    came = [asyncio.create_task(entered(setting.session(0, 3, f"s{number}"), order, f"s{number}")) for number in range(4)]
    await until(lambda: len(setting.room.line) == 4, 2.0, "they came")
    loading.set()
    await asyncio.gather(*came)
    assert order == ["s0", "s1", "s2", "s3"]


async def test_what_the_worker_has_no_room_to_load_takes_an_idle_stages_or_waits(setting: Setting) -> None:
    """It counts more than the formula here does: what other stages compute in, llama.cpp's contexts."""
    ordinary, order = setting.worker.load_stage, []

    async def one_at_a_time(params: LoadStage, fds: list[int]) -> StageLoaded:
        if len(setting.worker.loads) > len(setting.worker.unloads):
            raise Busy("no room for these layers")
        return await ordinary(params, fds)

    setting.worker.load_stage = one_at_a_time  # type: ignore[method-assign]
    async with setting.session(0, 1):
        pass
    async with setting.session(1, 2):
        assert [load.first for load in setting.worker.loads] == [0, 1]
        assert len(setting.worker.unloads) == 1, "the idle one went"
        with pytest.raises(Busy, match="no room for these layers; no room just now"):
            async with setting.session(2, 3):
                pass
        waiting = asyncio.create_task(entered(setting.session(2, 3, "waits", asker=PATIENT), order, "in"))
        await until(lambda: len(setting.room.line) == 1 and setting.room.line._stuck, 2.0, "it waits")
        assert not order
    await waiting
    assert order == ["in"]
    assert setting.room.free() == setting.room.memory


async def test_a_session_may_leave_what_it_computed_to_the_one_that_names_it(setting: Setting) -> None:
    left = Left(owner="entry a", name="first")
    async with setting.session(0, 3) as hold:
        assert hold.reused == 0
        hold.left = left
    assert setting.worker.left == [left]
    async with setting.session(0, 3, "second"):
        pass
    assert setting.worker.left == [left]
    opening = OpenSequence(stage="", session="third", tokens_max=16, sampling=Sampling(), after=left, positions=7)
    async with setting.room.sequence(setting.located, 0, 3, "bf16", opening) as hold:
        assert hold.reused == 7


async def test_what_a_model_takes_is_measured_while_nothing_else_changes(setting: Setting) -> None:
    setting.worker.grows = 5_000
    async with setting.session(0, 3, "a") as mine:
        stage = mine.stage
        assert setting.room.measured(stage) == 5_000
        setting.worker.used += 700  # contexts, and what passes take
        assert setting.room.measured(stage) == 5_700
    async with setting.session(1, 2, "b") as theirs:
        other = theirs.stage
        assert setting.room.measured(stage) is None  # it grew for both
        assert setting.room.measured(other) == 5_000
        async with setting.session(0, 3, "a"):
            assert setting.room.measured(other) is None
    setting.worker.generation = 0
    assert setting.room.measured(other) is None


async def test_a_device_with_less_memory_bounds_what_is_lent(setting: Setting) -> None:
    lent = setting.room.memory
    setting.worker.device = DeviceTold(name="cuda:0", memory=lent // 2)
    assert setting.room.memory == setting.room.free() == lent // 2
    setting.worker.device = DeviceTold(name="cpu", memory=2 * lent)
    assert setting.room.memory == lent
