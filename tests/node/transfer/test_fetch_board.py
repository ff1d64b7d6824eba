"""Windows: whichever k shards come first, in order, with bounded room ahead."""

from __future__ import annotations

import asyncio

import pytest

from node.transfer.fetch_board import Board, Shape
from node.transfer.slots import Slots
from node.transfer.windows import WINDOW


def board_of(k: int, windows: int) -> tuple[Board, Slots]:
    pool = Slots()
    length = windows * WINDOW - 5
    return Board(Shape(bytes(32), k, length, windows * 16, windows, [bytes(32)] * 6), pool), pool


async def test_a_window_is_ready_with_its_first_k_shards_and_in_order() -> None:
    board, pool = board_of(2, 3)
    late = board.slot()
    board.deliver(1, 0, board.slot(), 0.1)
    board.deliver(1, 4, board.slot(), 0.1)
    assert board.front == 0
    assert not board.wants(1, 3)
    board.deliver(0, 4, board.slot(), 0.1)
    assert board.seconds_taken(0) == [0.1]
    board.deliver(0, 5, board.slot(), 0.3)
    assert board.front == 2
    board.deliver(0, 1, late, 9.0)
    assert pool.take() is late
    first, second = await board.next_ready(), await board.next_ready()
    assert (first[0], set(first[1])) == (0, {4, 5})
    assert (second[0], set(second[1])) == (1, {0, 4})


async def test_the_same_shard_twice_counts_once() -> None:
    board, _ = board_of(2, 1)
    board.deliver(0, 3, board.slot(), 0.1)
    board.deliver(0, 3, board.slot(), 0.1)
    assert board.front == 0


async def test_readers_run_ahead_by_a_bound() -> None:
    board, _ = board_of(4, 20)
    await board.room(3)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await board.room(19)
    waiting = asyncio.create_task(board.room(4))
    await asyncio.sleep(0)
    assert not waiting.done()
    board.window_assembled()
    await asyncio.wait_for(waiting, 5)


def test_the_last_window_is_short_and_no_shard_has_none() -> None:
    assert Shape(bytes(32), 2, 3 * WINDOW - 5, 48, 3, []).window_length(2) == WINDOW - 5
    assert Board(Shape(bytes(32), 2, 0, 0, 0, []), Slots()).front == 0
