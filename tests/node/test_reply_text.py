"""A reply's text goes on when the worker that spells it dies: nothing is said twice, nothing is lost."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from node.reply_text import PATIENCE, ReplyText
from protocol.errors import NotFound, Unavailable
from protocol.ids import ModelId
from tests.support.virtual_time import run_virtual


class Speller:
    """A worker that spells `<token>`, and dies when told to: for `away` tries it can't be started."""

    def __init__(self) -> None:
        self.running = True
        self.away = 0
        self.streams: set[str] = set()
        self.held: dict[str, str] = {}
        self.halves: set[int] = set()

    def die(self, away: int) -> None:
        self.running, self.away = away == 0, away
        self.streams.clear()

    async def text(self, located: Any) -> None:
        if self.away:
            self.away -= 1
            raise Unavailable("the worker ended (signal 9, SIGKILL)")
        self.running = True

    async def open_text(self, model: str, stream: str) -> None:
        self.streams.add(stream)

    async def decode_text(self, stream: str, tokens: list[int], *, last: bool = False) -> str:
        if not self.running:
            raise Unavailable("the worker ended (signal 9, SIGKILL)")
        if stream not in self.streams:
            raise NotFound("this stream isn't open")
        if last:
            self.streams.discard(stream)
        held = self.held.pop(stream, "") + "".join(f"<{token}>" for token in tokens)
        if tokens and tokens[-1] in self.halves and not last:
            self.held[stream], held = held, ""  # it ends within a character: nothing of this feed is said yet
        return held


def made() -> tuple[Speller, ReplyText]:
    speller: Any = Speller()
    located: Any = SimpleNamespace(model=ModelId(bytes(32)))
    room: Any = SimpleNamespace(text=speller.text)
    return speller, ReplyText(speller, room, located)


@pytest.mark.parametrize("away", [0, 1, 12])
def test_a_new_worker_takes_it_up(away: int) -> None:
    async def main() -> None:
        speller, text = made()
        said = await text.feed([1]) + await text.feed([2])
        speller.die(away)
        said += await text.feed([3])
        said += await text.feed([4], last=True)
        assert said == "<1><2><3><4>"
        assert not speller.streams

    run_virtual(main())


def test_a_reply_goes_on_without_its_text_while_the_worker_starts() -> None:
    async def main() -> None:
        speller, text = made()
        said = await text.feed([1])
        speller.die(4)
        before = asyncio.get_running_loop().time()
        assert await text.feed([2]) == await text.feed([3]) == ""
        assert asyncio.get_running_loop().time() == before
        await asyncio.sleep(5)
        assert await text.feed([4]) == "<2><3><4>"
        speller.die(4)
        said += "<2><3><4>" + await text.feed([5], wait=True)
        assert said == "<1><2><3><4><5>"
        await text.feed([6])
        speller.die(2)
        assert await text.feed([7]) == ""
        await asyncio.sleep(5)
        speller.die(2)  # a second time, before anything was read from the new one
        assert await text.feed([8]) + await text.feed([9], last=True) == "<7><8><9>"

    run_virtual(main())


def test_a_reply_that_is_left_meanwhile_leaves_nothing_running() -> None:
    async def main() -> None:
        speller, text = made()
        await text.feed([1])
        speller.die(10**9)
        assert await text.feed([2]) == ""
        await text.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())


def test_what_a_new_worker_holds_back_isnt_said_twice() -> None:
    async def main() -> None:
        speller, text = made()
        speller.halves = {3}
        said = await text.feed([1]) + await text.feed([2])
        speller.die(1)
        said += await text.feed([3], wait=True)
        assert said == "<1><2>"
        said += await text.feed([4]) + await text.feed([5], last=True)
        assert said == "<1><2><3><4><5>"

    run_virtual(main())


def test_a_worker_that_stays_away_is_said_so_in_time() -> None:
    async def main() -> None:
        speller, text = made()
        await text.feed([0])
        speller.die(10**9)
        began = asyncio.get_running_loop().time()
        assert await text.feed([1]) == ""
        with pytest.raises(Unavailable, match="SIGKILL"):
            await text.feed([2], last=True)
        assert asyncio.get_running_loop().time() - began <= PATIENCE + 1

    run_virtual(main())


def test_what_isnt_the_workers_fault_is_told_at_once() -> None:
    async def main() -> None:
        _speller, text = made()

        async def missing(located: Any) -> None:
            raise Unavailable("fewer than k shards")

        text._room = SimpleNamespace(text=missing)  # type: ignore[assignment]
        with pytest.raises(Unavailable, match="shards"):
            await text.feed([1])

    run_virtual(main())
