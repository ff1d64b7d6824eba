"""Layers compiled in the background: kept, found again, made anew when damaged; whatever stands in the way, the stage runs as it is."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from node import compile_layers
from node.compile_layers import LayerCompiler
from node.compiled_cache import CompiledCache
from node.worker import Worker
from protocol.errors import BadInput, Unavailable
from runtime.compiled_shape import PARTS
from runtime.interface import Compilable, CompiledTaken, StageLoaded
from tests.node.test_worker import load_tiny
from tests.runtime.test_compiled import SHAPE
from tests.support.wait import until

NAME = "0123456789abcdef" * 2
WANTED = Compilable(name=NAME, shape=SHAPE)


def libraries(folder: Path, text: bytes = b"library") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        (folder / f"{part}.so").write_bytes(text + part.encode())
    return folder


def read(cache: CompiledCache, name: str = NAME) -> list[bytes] | None:
    found = cache.open(name)
    if found is None:
        return None
    try:
        return [os.pread(fd, length, 0) for fd, length in zip(*found, strict=True)]
    finally:
        for fd in found[0]:
            os.close(fd)


def test_what_is_put_is_found_again_whole_or_not_at_all(tmp_path: Path) -> None:
    cache = CompiledCache(tmp_path / "compiled")
    assert read(cache) is None
    cache.put(NAME, libraries(tmp_path / "made"))
    assert read(cache) == [b"libraryenter", b"libraryleave"]
    assert (tmp_path / "compiled").stat().st_mode & 0o777 == 0o700
    cache.put(NAME, libraries(tmp_path / "made", b"another"))
    assert read(cache) == [b"anotherenter", b"anotherleave"]
    path = tmp_path / "compiled" / NAME / "leave.so"
    path.write_bytes(path.read_bytes()[:-1])
    assert read(cache) is None
    assert cache.names() == []


@pytest.mark.parametrize("name", ["../../etc", "", "0" * 31, "g" * 32])
def test_a_name_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="hexadecimal"):
        CompiledCache(tmp_path).open(name)


def test_the_last_used_stay(tmp_path: Path) -> None:
    cache, made = CompiledCache(tmp_path / "compiled", most=3), libraries(tmp_path / "made")
    names = [f"{number:032x}" for number in range(5)]
    (tmp_path / "compiled" / ".new-left").mkdir(parents=True)
    for at, name in enumerate(names[:3]):
        cache.put(name, made)
        os.utime(tmp_path / "compiled" / name, (at, at))
    assert read(cache, names[0]) is not None
    cache.put(names[3], made)
    assert set(cache.names()) == {names[0], names[2], names[3]}
    assert not list((tmp_path / "compiled").glob(".new-*"))


class FakeWorker:
    """Takes what it is given."""

    def __init__(self, *stages: str) -> None:
        self.stages = {stage: StageLoaded(bytes=1, seconds=0.0, self_test="", compilable=WANTED) for stage in stages}
        self.given: list[tuple[str, list[bytes]]] = []

    async def take_compiled(self, stage: str, fds: Sequence[int], lengths: Sequence[int]) -> CompiledTaken:
        self.given.append((stage, [os.pread(fd, length, 0) for fd, length in zip(fds, lengths, strict=True)]))
        return CompiledTaken(taken=True, said="single rows compiled")


def compiler(worker: Any, tmp_path: Path, within: float = 20.0) -> LayerCompiler:
    return LayerCompiler(worker, CompiledCache(tmp_path / "compiled"), tmp_path / "scratch", within)


def tell(made: LayerCompiler, worker: Any) -> None:
    for stage, told in worker.stages.items():
        made.loaded(stage, told)


async def done(made: LayerCompiler) -> None:
    assert made._task is not None
    await asyncio.wait_for(made._task, 60.0)
    await made.close()


async def test_what_lies_there_goes_to_every_stage_of_its_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker, made = FakeWorker("a", "b"), None

    async def never(*_: Any) -> None:
        raise AssertionError("it was there")

    monkeypatch.setattr(LayerCompiler, "_compile", never)
    CompiledCache(tmp_path / "compiled").put(NAME, libraries(tmp_path / "made"))
    made = compiler(worker, tmp_path)
    worker.stages["c"] = StageLoaded(bytes=1, seconds=0.0, self_test="")
    worker.stages["d"] = StageLoaded(bytes=1, seconds=0.0, self_test="", lean="within 0.01")
    tell(made, worker)
    await done(made)
    assert [stage for stage, _ in worker.given] == ["a", "b"]
    assert worker.given[0][1] == [b"libraryenter", b"libraryleave"]
    assert made.said == {"a": "single rows compiled", "b": "single rows compiled", "d": compile_layers.UNLIKE}


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Puts a script in the compiling process's place."""

    def put(script: str) -> None:
        (tmp_path / "fake").mkdir(exist_ok=True)
        (tmp_path / "fake" / "runtime").mkdir(exist_ok=True)
        (tmp_path / "fake" / "runtime" / "__init__.py").write_text("")
        (tmp_path / "fake" / "runtime" / "compiling.py").write_text("import sys, os, time\nfolder = sys.argv[1]\n" + script)
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "fake"), "PYTHONSAFEPATH": "1"}
        monkeypatch.setattr(compile_layers, "_environment", lambda _folder: environment)

    return put


async def test_compiled_once_and_kept(tmp_path: Path, program: Any) -> None:
    program("assert b'hidden' in sys.stdin.buffer.read()\nfor p in ('enter', 'leave'): open(f'{folder}/{p}.so', 'w').write(p)\n")
    worker = FakeWorker("a")
    made = compiler(worker, tmp_path)
    tell(made, worker)
    await done(made)
    assert worker.given == [("a", [b"enter", b"leave"])]
    assert list((tmp_path / "scratch").iterdir()) == []
    program("sys.exit(3)")
    again = compiler(worker, tmp_path)
    tell(again, worker)
    await done(again)
    assert len(worker.given) == 2


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("sys.exit('RuntimeError: no C++ compiler found')", "no C++ compiler found"),
        ("os.kill(os.getpid(), 9)", "exit code -9"),
        ("time.sleep(60)", "was ended"),
        ("pass", "No such file"),
    ],
)
async def test_what_stands_in_the_way_is_told_once(
    tmp_path: Path, program: Any, script: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    program(script)
    worker = FakeWorker("a")
    made = compiler(worker, tmp_path, 2.0 if "sleep" in script else 20.0)
    tell(made, worker)
    assert made._task is not None
    await asyncio.wait_for(made._task, 60.0)
    assert said in caplog.text
    assert worker.given == []
    assert list((tmp_path / "scratch").iterdir()) == []
    assert said in made.said["a"]
    made._task = None
    worker.stages["b"] = worker.stages["a"]
    tell(made, worker)
    assert made._task is None, "not tried again before the next start"
    assert made.said["b"].startswith("not compiled: ")


async def test_a_node_that_stops_meanwhile_leaves_no_process(tmp_path: Path, program: Any) -> None:
    program("open(f'{folder}/../pid', 'w').write(f'{os.getpid()} {os.getsid(0)}')\ntime.sleep(60)\n")
    worker = FakeWorker("a")
    made = compiler(worker, tmp_path)
    tell(made, worker)
    pid = tmp_path / "scratch" / "pid"
    await until(lambda: pid.exists() and pid.read_text() != "", 20.0, "it compiles")
    compiles, session = map(int, pid.read_text().split())
    assert session == os.getsid(0), "in another session its low priority would count for nothing where the kernel groups by them"
    began = time.monotonic()
    await made.close()
    assert time.monotonic() - began < 6.0
    await until(lambda: not Path(f"/proc/{compiles}").exists(), 5.0, "its process is gone")


async def test_a_stage_that_loads_meanwhile_gets_it_too_and_a_worker_that_ends_costs_nothing(tmp_path: Path) -> None:
    worker = FakeWorker("a")
    made = compiler(worker, tmp_path)
    CompiledCache(tmp_path / "compiled").put(NAME, libraries(tmp_path / "made"))
    take, ended = worker.take_compiled, False

    async def loads_another(stage: str, fds: Sequence[int], lengths: Sequence[int]) -> CompiledTaken:
        nonlocal ended
        if not ended:
            ended = True
            raise Unavailable("the worker ended")
        if len(worker.stages) == 1:
            worker.stages["b"] = worker.stages["a"]
            made.loaded("b", worker.stages["b"])
        return await take(stage, fds, lengths)

    worker.take_compiled = loads_another  # type: ignore[method-assign]
    for _ in range(2):
        tell(made, worker)
        assert made._task is not None
        await asyncio.wait_for(made._task, 60.0)
    await made.close()
    assert {stage for stage, _ in worker.given} == {"a", "b"}


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[tuple[Worker, LayerCompiler]]:
    worker = Worker(tmp_path / "scratch", threads=1, memory=50_000_000)
    made = compiler(worker, tmp_path, 300.0)
    worker.on_loaded = made.loaded
    yield worker, made
    await made.close()
    await worker.stop()


@pytest.mark.nightly
async def test_for_real_in_both_sandboxes(real: tuple[Worker, LayerCompiler], tmp_path: Path) -> None:
    worker, made = real
    stage = await load_tiny(worker, precision="int8")  # in an order that the compiler knows on any processor
    await until(lambda: stage in made.said, 300.0, "its layers are compiled")
    assert "compiled" in made.said[stage], made.said
    assert len(CompiledCache(tmp_path / "compiled").names()) == 1
    assert sys.executable
