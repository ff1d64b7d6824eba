"""The worker's supervisor against a real worker process with a tiny model."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bootstrap.demo_model import demo_model
from node.channel import Unreadable
from node.worker import Worker
from protocol.errors import BadInput, Busy, DeadlineExceeded, MfError, NotFound, Unavailable
from protocol.messages import Sampling
from runtime import interface as api
from tests.runtime.support import config_bytes, lay_out, load_message, model_files, stored_tensors, tiny_config, tiny_model
from tests.support.wait import until, wait_until

MEMORY = 5_000_000


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    made = Worker(tmp_path / "scratch", threads=1, memory=MEMORY)
    yield made
    await made.stop()


def text_message() -> api.LoadText:
    config = tiny_config(max_position_embeddings=1 << 20)
    return api.LoadText(model="m", files=model_files(demo_model()) | {"config.json": config_bytes(config)})


async def test_an_asker_that_leaves_doesnt_end_the_start(worker: Worker) -> None:
    asked = asyncio.create_task(worker.ping())
    await until(lambda: worker.pid is not None, 5.0, "the process is there")
    pid = worker.pid
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await worker.ping()
    assert (worker.pid, worker.generation) == (pid, 1)


async def test_a_lane_whose_asker_left_is_dropped(worker: Worker) -> None:
    await worker.ping()
    mine, theirs = socket.socketpair()
    with theirs:
        asked = asyncio.create_task(worker.take_lane(api.TakeLane(lane=5, key=bytes(32)), mine.fileno()))
        await asyncio.sleep(0)  # it is on its way
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        mine.close()
        await worker.ping()
        theirs.settimeout(5.0)
        assert theirs.recv(1) == b"", "the worker closed its end"


async def load_tiny(worker: Worker, first: int = 0, end: int = 6, precision: str = "bf16") -> str:
    await worker.load_text(text_message())
    fd, places, length = lay_out(stored_tensors(tiny_model(tiny_config())))
    message = load_message(places, length, first, end, 6, precision)
    try:
        await worker.load_stage(message, [fd])
    finally:
        os.close(fd)
    return message.stage


async def leave_while_loading(worker: Worker) -> None:
    """An asker who leaves leaves no stage behind."""
    fd, places, length = lay_out(stored_tensors(tiny_model(tiny_config())))
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    load = asyncio.create_task(worker.load_stage(load_message(places, length, 0, 6, 6), [fd]))
    await until(lambda: worker._loading == 1, 5, "the load to begin")
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    os.kill(worker.pid, signal.SIGCONT)
    os.close(fd)
    assert (await worker.usage()).weights == 0


class Longer(api.StageLoaded, kw_only=True):
    """What a worker of another version would answer."""

    unheard_of: int


async def test_a_stage_whose_answer_cannot_be_read_is_not_kept(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(api, "StageLoaded", Longer)
        with pytest.raises(Unreadable, match="unheard_of"):
            await load_tiny(worker)
    assert not worker.stages
    stage = await load_tiny(worker)
    assert (await worker.usage()).weights == worker.stages[stage].bytes


def kill(worker: Worker) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)


async def test_starts_on_first_use_without_secrets_and_leaves_nothing(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-91")
    monkeypatch.setenv("HF_TOKEN", "canary-92")
    assert worker.pid is None
    await asyncio.gather(*[worker.ping() for _ in range(20)])
    assert worker.generation == 1
    assert set(worker.sandbox) == {"limits", "no_new_privs", "landlock", "seccomp"}
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    environment = await asyncio.to_thread(Path(f"/proc/{worker.pid}/environ").read_bytes)
    assert b"canary" not in environment
    assert b"HF_HUB_OFFLINE=1" in environment
    await worker.stop()
    assert not worker.running
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_a_tiny_model_steps_within_its_budget(worker: Worker) -> None:
    stage = await load_tiny(worker)
    assert worker.stages[stage].bytes > 0
    await worker.open_sequence(api.OpenSequence(stage=stage, session="s", tokens_max=16, sampling=Sampling()))
    answer = await worker.step(api.Step(session="s", epoch=0, position=0, tokens=[1, 2, 3], count=3))
    assert answer.token is not None
    used = await worker.usage()
    assert (used.weights, used.sequences) == (worker.stages[stage].bytes, 1)
    assert used.kv == 2 * 6 * 2 * 16 * 16 * 2
    with pytest.raises(Busy, match=r"no room for this sequence: .* MB needed, .* MB free"):
        await worker.open_sequence(api.OpenSequence(stage=stage, session="greedy", tokens_max=1_000_000, sampling=Sampling()))
    await worker.close_sequence("s")
    await worker.unload(stage)
    freed = await worker.usage()
    assert (freed.weights, freed.kv, freed.sequences) == (0, 0, 0)
    await leave_while_loading(worker)


async def test_a_killed_worker_fails_clearly_comes_back_and_is_held_back_if_it_dies_again(worker: Worker) -> None:
    stage = await load_tiny(worker)
    await worker.open_sequence(api.OpenSequence(stage=stage, session="s", tokens_max=4096, sampling=Sampling()))
    step = asyncio.create_task(worker.step(api.Step(session="s", epoch=0, position=0, tokens=[1] * 4000, count=4000)))
    await asyncio.sleep(0)
    kill(worker)
    with pytest.raises(Unavailable, match=r"the worker ended \(signal 9, SIGKILL\)"):
        await step
    assert worker.stages == {}
    await worker.ping()
    assert worker.generation == 2
    with pytest.raises(NotFound, match="this session isn't open"):
        await worker.step(api.Step(session="s", epoch=0, position=0, tokens=[1], count=1))
    kill(worker)
    await until(lambda: not worker.running, 5, "the end of the worker")
    with pytest.raises(Unavailable, match=r"signal 9.*starts again in"):
        await worker.ping()
    await until(lambda: worker.running, 60, "it to start again by itself")
    assert worker.generation == 3


async def test_a_load_beyond_the_budget_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    worker = Worker(tmp_path, threads=1, memory=100_000)
    try:
        with pytest.raises(Busy, match=r"no room for layers 0\.\.6 at bf16: .* MB needed, 0\.1 MB of 0 MB free|no room"):
            await load_tiny(worker)
        assert (await worker.usage()).weights == 0
    finally:
        await worker.stop()


def wanted(session: str, new_max: int, **more: object) -> api.Generate:
    return api.Generate(
        stage="0-6-bf16",
        session=session,
        tokens=[1, 2, 3],
        tokens_max=new_max + 3,
        new_max=new_max,
        stop_tokens=[],
        sampling=Sampling(),
        **more,  # type: ignore[arg-type]
    )


async def reply(worker: Worker, asked: api.Generate) -> tuple[list[int], str]:
    tokens, text = [], ""
    async for note in worker.generate(asked):
        if isinstance(note, api.Made):
            tokens, text = tokens + note.tokens, text + note.text
        else:
            assert note.made == len(tokens)
    return tokens, text


async def test_replies_are_made_side_by_side_and_one_that_is_left_ends_at_once(worker: Worker) -> None:
    await load_tiny(worker)
    alone = await reply(worker, wanted("a", 24, text=True))
    assert len(alone[0]) == 24
    assert alone[1]
    left = worker.generate(wanted("left", 200))
    await anext(left)
    together = asyncio.gather(*(reply(worker, wanted(f"b{number}", 24, text=True)) for number in range(4)))
    await anext(left)
    await left.aclose()
    assert (await worker.usage()).sequences <= 4
    assert await together == [alone] * 4
    assert (await worker.usage()).kv == 0
    assert worker._replies == {}


async def test_one_of_many_waits_for_as_long_as_others_are_answered_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.worker.STEP_SECONDS", 0.4)
    worker, loop = Worker(tmp_path / "scratch", threads=1, memory=MEMORY), asyncio.get_running_loop()
    mine: asyncio.Queue[api.Made | None] = asyncio.Queue()
    worker._replies["mine"] = mine
    making = set()

    def others(session: str) -> None:
        making.add(asyncio.ensure_future(worker._take_made([[session, [1]]], [])))

    for turn in range(1, 7):
        loop.call_later(0.2 * turn, others, "mine" if turn == 6 else "another's")
    began = loop.time()
    note = await worker._next_note(mine)
    assert (note is not None and note.session, loop.time() - began >= 1.0) == ("mine", True)
    with pytest.raises(DeadlineExceeded, match="no token"):
        await asyncio.wait_for(worker._next_note(mine), 3 * 0.4)
    monkeypatch.setattr("node.worker._LINE_SECONDS", 0.5)
    for turn in range(1, 7):
        loop.call_later(0.2 * turn, others, "another's")
    with pytest.raises(DeadlineExceeded, match="no token"):
        await asyncio.wait_for(worker._next_note(mine), 1.1)


async def test_a_crash_in_the_middle_of_a_reply_is_told_and_the_next_life_works(worker: Worker) -> None:
    await load_tiny(worker)
    going = worker.generate(wanted("a", 200))
    await anext(going)
    kill(worker)
    with pytest.raises(Unavailable, match="SIGKILL"):
        async for _note in going:
            pass
    await load_tiny(worker)
    assert len((await reply(worker, wanted("a", 8)))[0]) == 8


async def test_a_reply_that_cant_begin_says_why(worker: Worker) -> None:
    await load_tiny(worker)
    with pytest.raises(BadInput, match="0 new tokens"):
        await reply(worker, wanted("a", 0))
    with pytest.raises(Busy, match="no room"):
        await reply(worker, wanted("a", 1_000_000))


async def test_nonsense_is_refused_and_the_worker_lives(worker: Worker) -> None:
    with pytest.raises(NotFound, match="stage isn't loaded"):
        await worker.open_sequence(api.OpenSequence(stage="none", session="s", tokens_max=4, sampling=Sampling()))
    with pytest.raises(NotFound, match="text files aren't loaded"):
        await worker.encode_text("none", "x")
    with pytest.raises(NotFound, match="stream isn't open"):
        await worker.decode_text("none", [1])
    await worker.ping()
    before = worker.pid
    with pytest.raises(BadInput, match="doesn't know 'dance'"):
        await worker._call("dance", {}, type(None))
    with pytest.raises(BadInput, match=r"step: .*position"):
        await worker._call("step", {"session": "s", "epoch": 0, "position": "x"}, api.Stepped)
    with pytest.raises(BadInput, match="configured already"):
        await worker._call("configure", api.WorkerConfig(scratch="/", threads=1, memory=1), type(None))
    with pytest.raises(MfError):
        await worker._call("decode_text", None, api.Text)
    await worker.ping()
    assert worker.pid == before


PARENT = """
import asyncio, sys
from pathlib import Path
from node.worker import Worker

async def main():
    worker = Worker(Path(sys.argv[1]), threads=1, memory=1 << 20)
    await worker.ping()
    print(worker.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_it_dies_with_its_node(tmp_path: Path) -> None:
    top = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], env={**os.environ, "PYTHONPATH": top}, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or " Z" in Path(f"/proc/{pid}/stat").read_text(), 5, "the worker gone")


async def test_a_device_that_isnt_here_is_said_at_once(tmp_path: Path) -> None:
    worker = Worker(tmp_path, threads=1, memory=500_000_000, device="cuda:9")
    try:
        with pytest.raises(BadInput, match=r"device 'cuda:9' isn't here; this machine has .*cpu"):
            await worker.start()
        assert not worker.running
    finally:
        await worker.stop()


async def test_what_it_computes_on_is_told(tmp_path: Path) -> None:
    worker = Worker(tmp_path, threads=1, memory=500_000_000)
    try:
        await worker.start()
        assert worker.device == api.DeviceTold(name="cpu", memory=500_000_000)
    finally:
        await worker.stop()
