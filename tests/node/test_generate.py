"""Ask: the events of a reply, its bounds, and that a lost stage changes nothing but the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from node.gateway import Event, Finished, GenerationRequest, Piece, Planned
from node.generate import REPLACEMENTS, Generator
from node.heard import Listening
from node.kept_prefixes import KeptPrefixes
from node.network.memory import MemoryHub
from node.reply_routes import ReplyRoutes
from protocol import limits
from protocol.errors import BadInput, Busy, DeadlineExceeded, MfError, TooLarge, Unavailable
from protocol.ids import ModelId, PeerId, model_text
from protocol.messages import Sampling, StageSpec, TokenLogprob
from runtime.interface import SpelledToken, Step, Stepped, TextLoaded
from runtime.interface import Text as WorkerText
from runtime.routing import Plan
from tests.node.pipeline_fakes import Member, expected, members, route
from tests.support.virtual_time import run_virtual
from tests.support.wait import until

MODEL = ModelId(bytes(32))
PROMPT = [3, 14, 15, 92]


class Text:
    """The worker's text side: a token is shown as `<token>`; prompts are numbers."""

    running = True

    def __init__(self) -> None:
        self.open: set[str] = set()

    async def encode_text(self, model: str, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    async def encode_chat(
        self, model: str, messages: list[dict[str, Any]], *, continue_final: bool = False, tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        return [int(word) for message in messages for word in message["content"].split()]

    async def open_text(self, model: str, stream: str) -> None:
        self.open.add(stream)

    async def decode_text(self, stream: str, tokens: list[int], *, last: bool = False) -> str:
        if last:
            self.open.discard(stream)
        return "".join(f"<{token}>" for token in tokens)

    async def spell_text(self, stream: str, tokens: list[int], logprobs: list[list[TokenLogprob]]) -> WorkerText:
        assert stream in self.open
        return WorkerText("", [[SpelledToken(f"<{one.token}>", b"%d" % one.token, one.logprob) for one in row] for row in logprobs])


class Routes:
    """Plans the first of `routes` that has none of the peers to avoid."""

    def __init__(self, routes: list[list[StageSpec]]) -> None:
        self.routes = routes
        self.asked: list[tuple[int, set[PeerId]]] = []
        self.forced: list[bool] = []
        self.allowed = True

    def plan(
        self,
        located: Any,
        tokens_max: int,
        precision: str,
        avoid: Iterable[PeerId] = (),
        running: Iterable[StageSpec] = (),
        *,
        force: bool = False,
    ) -> Plan:
        self.asked.append((tokens_max, set(avoid)))
        self.forced.append(force)
        for stages in self.routes:
            if not {stage.peer for stage in stages} & set(avoid):
                return Plan("pipeline" if len(stages) > 1 else "peer", stages, "chosen by the test")
        raise Unavailable("no route: nobody is left")

    def replace(
        self,
        located: Any,
        plan: Plan,
        gone: set[PeerId],
        tokens_max: int,
        precision: str,
        avoid: set[PeerId],
        *known: Iterable[Any],
        force: bool = False,
    ) -> Plan:
        return self.plan(located, tokens_max, precision, avoid, force=force)

    def may_come_back(self) -> bool:
        return False

    def again(self, located: Any, stages: list[StageSpec], tokens_max: int, precision: str, *, force: bool = False) -> Plan | None:
        return Plan("pipeline" if len(stages) > 1 else "peer", stages, "again") if self.allowed else None


class Setting:
    """A generator at the first of the nodes; `context` of the model."""

    def __init__(self, nodes: list[Member], *routes: list[StageSpec], context: int | None = None, eos: Iterable[int] = ()) -> None:
        self.nodes, self.text, self.routes = nodes, Text(), Routes(list(routes))
        self.suspects: list[PeerId] = []
        entry = nodes[0]

        async def locate(model: ModelId) -> Any:
            return SimpleNamespace(
                model=model, manifest=SimpleNamespace(summary=SimpleNamespace(architecture=None, context=None, vocabulary=97))
            )

        async def text(located: Any) -> TextLoaded:
            return TextLoaded(eos=list(eos), context=context, has_template=True)

        swarm: Any = SimpleNamespace(resolve=lambda name: MODEL, suspect=lambda peer, why: self.suspects.append(peer))
        locator: Any = SimpleNamespace(locate=locate)
        room: Any = SimpleNamespace(text=text)
        worker: Any = self.text
        router: Any = self.routes
        self.generator = Generator(entry.network, swarm, locator, router, room, worker, entry.steps, entry.server)

    async def events(self, at_first: Callable[[], None] = lambda: None, **options: Any) -> list[Event]:
        seen: list[Event] = []
        async with aclosing(self.generator.generate(ask(**options))) as events:
            async for event in events:
                if isinstance(event, Piece) and not any(isinstance(before, Piece) for before in seen):
                    at_first()
                seen.append(event)
        return seen


def ask(**options: Any) -> GenerationRequest:
    fields: dict[str, Any] = {"model": "m", "sampling": Sampling(), "text": " ".join(map(str, PROMPT)), "max_tokens": 8}
    return GenerationRequest(**(fields | options))


def shown(tokens: Iterable[int]) -> str:
    return "".join(f"<{token}>" for token in tokens)


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def virtually(test: Callable[[list[Member], MemoryHub], Any]) -> None:
    async def main() -> None:
        hub = MemoryHub(7, delay=(0.001, 0.003), stall=0.0)
        nodes = await members(hub, 4)
        try:
            await test(nodes, hub)
            await until(lambda: not any(node.room.open for node in nodes), 3.0, "rooms given back")
        finally:
            for node in nodes:
                await node.network.stop()

    run_virtual(main())


def test_planned_pieces_finished() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(nodes[0].peer, nodes[1].peer))
        events = await setting.events()
        first, *pieces, last = events
        assert isinstance(first, Planned)
        assert (first.model_id, first.kind, first.prompt_tokens) == (model_text(MODEL), "pipeline", len(PROMPT))
        assert [(stage["peer"], stage["here"]) for stage in first.route] == [(nodes[0].peer, True), (nodes[1].peer, False)]
        assert [piece.tokens for piece in pieces if isinstance(piece, Piece)] == list(range(1, 9))
        assert said(events) == shown(expected(PROMPT, 8))
        assert isinstance(last, Finished)
        assert (last.reason, last.prompt_tokens, last.completion_tokens, last.replaced) == ("length", 4, 8, 0)
        assert {"plan", "first_token", "total", "load", "queue", "prefill", "decode", "network"} <= last.timings.keys()
        assert [(stage.peer, stage.first, stage.end) for stage in last.stages] == [(nodes[0].peer, 0, 3), (nodes[1].peer, 3, 6)]
        assert all(stage.wait is not None for stage in last.stages)
        assert not setting.text.open

    virtually(test)


@pytest.mark.parametrize("at", [1, 2])
def test_a_reply_that_a_stop_string_ends_tells_its_times_too(at: int) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(*(node.peer for node in nodes[1 : at + 1])))
        *_others, last = await setting.events(stop=(shown(expected(PROMPT, 3)[2:]),))
        assert isinstance(last, Finished)
        assert (last.reason, last.completion_tokens) == ("stop", 3)
        assert {"queue", "prefill", "decode", "network"} <= last.timings.keys()
        assert [stage.peer for stage in last.stages] == [node.peer for node in nodes[1 : at + 1]]

    virtually(test)


def test_messages_go_through_the_template() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(nodes[1].peer))
        events = await setting.events(text=None, messages=[{"role": "user", "content": "3 14"}, {"role": "user", "content": "15 92"}])
        assert said(events) == shown(expected(PROMPT, 8))

    virtually(test)


def test_a_stop_string_ends_the_reply_and_is_never_shown() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(nodes[1].peer, nodes[2].peer))
        tokens = expected(PROMPT, 100)
        stop = f"{tokens[3]}><{tokens[4]}"
        events = await setting.events(stop=("never seen", stop), max_tokens=100)
        assert said(events) == shown(tokens[:3]) + "<"
        assert isinstance(events[-1], Finished)
        assert (events[-1].reason, events[-1].completion_tokens) == ("stop", 5)
        assert not setting.text.open

    virtually(test)


def test_an_end_token_ends_the_reply_and_isnt_shown() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        tokens = expected(PROMPT, 4)
        events = await Setting(nodes, route(nodes[1].peer), eos=[tokens[3]]).events()
        assert said(events) == shown(tokens[:3])
        assert isinstance(events[-1], Finished)
        assert events[-1].reason == "stop"

    virtually(test)


@pytest.mark.parametrize(("options", "why"), [({"text": ""}, "empty"), ({"text": "1 2 3 4 5 6 7 8"}, "8 tokens, the model takes 8")])
def test_prompts_that_cant_be_are_refused_before_any_plan(options: dict[str, Any], why: str) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(nodes[1].peer), context=8)
        with pytest.raises(BadInput, match=why) as caught:
            await setting.events(**options)
        assert caught.value.status == 400
        assert not setting.routes.asked

    virtually(test)


@pytest.mark.parametrize("past", [0, 1])
@pytest.mark.parametrize("kind", ["text", "messages", "tools"])
def test_a_prompt_one_past_the_limit_is_refused_before_anything_is_made_of_it(kind: str, past: int) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting, texts = Setting(nodes, route(nodes[1].peer), context=8), 0

        async def encode(*_given: Any, **_more: Any) -> list[int]:
            nonlocal texts
            texts += 1
            return [1] * 9

        setting.text.encode_text = setting.text.encode_chat = encode  # type: ignore[method-assign]
        words: dict[str, Any] = {"text": ""} if kind == "text" else {"text": None, "messages": [{"role": "user", "content": ""}]}
        words |= {"tools": [{"name": ""}]} if kind == "tools" else {}
        around = len(msgspec.msgpack.encode([words.get("messages"), words.get("tools"), words["text"]])) + 4  # a long string's head
        long = "x" * (limits.MAX_PROMPT - around + past)
        if kind == "text":
            words["text"] = long
        else:
            words[kind][0]["name" if kind == "tools" else "content"] = long
        with pytest.raises(TooLarge if past else BadInput, match="are allowed" if past else "9 tokens, the model takes 8"):
            await setting.events(**words)
        assert texts == 1 - past

    virtually(test)


def test_the_reply_stays_within_the_models_context() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(nodes[1].peer), context=10)
        events = await setting.events(max_tokens=50)
        assert said(events) == shown(expected(PROMPT, 6))
        assert setting.routes.asked == [(10, set())]

    virtually(test)


@pytest.mark.parametrize("harm", ["kill", "freeze"])
def test_a_lost_stage_is_replaced_and_the_reply_is_the_same(harm: str) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        routes = route(nodes[0].peer, nodes[1].peer), route(nodes[0].peer, nodes[2].peer), route(nodes[2].peer), route(nodes[0].peer)
        setting = Setting(nodes, *routes)
        events = await setting.events(lambda: getattr(hub, harm)(nodes[1].peer), max_tokens=60)
        assert said(events) == shown(expected(PROMPT, 60))
        last = events[-1]
        assert isinstance(last, Finished)
        assert last.replaced >= 1
        assert nodes[1].peer not in {stage["peer"] for stage in last.route}
        assert setting.suspects == [nodes[1].peer]
        assert all(tokens_max == len(PROMPT) + 60 for tokens_max, _avoid in setting.routes.asked)
        hub.thaw(nodes[1].peer)

    virtually(test)


@pytest.mark.parametrize("force", [True, False])
def test_what_was_forced_stays_forced_when_a_stage_is_lost(force: bool) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(nodes[1].peer, nodes[2].peer), route(nodes[3].peer))
        await setting.events(lambda: hub.kill(nodes[1].peer), max_tokens=60, force=force)
        assert setting.routes.forced == [force, force]

    virtually(test)


def test_a_busy_peer_is_passed_over_without_suspicion() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        nodes[1].room.fault = Busy("full")
        setting = Setting(nodes, route(nodes[1].peer), route(nodes[2].peer))
        assert said(await setting.events()) == shown(expected(PROMPT, 8))
        assert not setting.suspects

    virtually(test)


def test_a_stages_bad_input_is_the_askers_and_not_tried_again() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        nodes[1].room.fault = BadInput("this architecture isn't known")
        setting = Setting(nodes, route(nodes[1].peer), route(nodes[2].peer))
        with pytest.raises(BadInput, match="architecture"):
            await setting.events()
        assert len(setting.routes.asked) == 1
        assert not setting.text.open

    virtually(test)


def test_it_gives_up_after_so_many_losses_with_the_last_reason() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        class Stubborn(Routes):
            def plan(
                self,
                located: Any,
                tokens_max: int,
                precision: str,
                avoid: Iterable[PeerId] = (),
                running: Iterable[StageSpec] = (),
                *,
                force: bool = False,
            ) -> Plan:
                return super().plan(located, tokens_max, precision)

        nodes[1].room.fault = MfError("broken for ever")
        setting = Setting(nodes, route(nodes[1].peer))
        stubborn = Stubborn(setting.routes.routes)
        setting.generator._routes = ReplyRoutes(stubborn)  # type: ignore[arg-type]
        with pytest.raises(MfError, match="broken for ever"):
            await setting.events()
        assert len(stubborn.asked) == 1 + REPLACEMENTS

    virtually(test)


def test_an_own_stage_is_tried_again_but_not_for_ever() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        nodes[0].room.fault = MfError("the worker ended")
        setting = Setting(nodes, route(nodes[0].peer))
        with pytest.raises(MfError, match="the worker ended"):
            await setting.events()
        assert nodes[0].room.asked == 1 + REPLACEMENTS

    virtually(test)


def test_a_full_peer_is_asked_again_when_nobody_else_is_there() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        nodes[1].room.fault = Busy("full")

        def room_again() -> None:
            nodes[1].room.fault = None

        asyncio.get_running_loop().call_later(5.0, room_again)
        assert said(await Setting(nodes, route(nodes[1].peer)).events()) == shown(expected(PROMPT, 8))

    virtually(test)


def test_when_no_route_is_left_the_loss_is_told_too() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(nodes[1].peer, nodes[2].peer))

        def kill() -> None:
            hub.kill(nodes[1].peer)
            setting.routes.routes.clear()

        with pytest.raises(Unavailable, match=f"nobody is left; before that, stage at {nodes[1].peer}:"):
            await setting.events(kill, max_tokens=500)

    virtually(test)


def test_the_requests_own_time_ends_it() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(nodes[1].peer, nodes[2].peer))
        with pytest.raises(DeadlineExceeded, match="timeout"):
            await setting.events(max_tokens=100_000, timeout=2.0)
        assert nodes[2].worker.steps
        assert not setting.text.open

    virtually(test)


def test_a_reader_who_leaves_ends_the_work_everywhere() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(nodes[1].peer, nodes[2].peer))
        async with aclosing(setting.generator.generate(ask(max_tokens=100_000))) as events:
            async for event in events:
                if isinstance(event, Piece):
                    break
        assert not setting.text.open
        await until(lambda: not any(node.room.open for node in nodes), 3.0, "rooms given back")
        steps = len(nodes[1].worker.steps)
        await asyncio.sleep(5.0)
        assert len(nodes[1].worker.steps) == steps

    virtually(test)


def test_a_stage_that_opens_late_in_a_failed_pipeline_is_let_go() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        """One stage refuses at once while the other is still being opened."""
        ordinary = nodes[0].network.open

        async def slow(peer: PeerId, protocol: str, timeout: float = 3.0) -> Any:
            stream = await ordinary(peer, protocol, timeout)
            if peer == nodes[2].peer:
                await asyncio.sleep(1.0)
            return stream

        nodes[0].network.open = slow  # type: ignore[method-assign]
        hub.kill(nodes[1].peer)
        setting = Setting(nodes, route(nodes[1].peer, nodes[2].peer), route(nodes[3].peer))
        assert said(await setting.events()) == shown(expected(PROMPT, 8))
        await asyncio.sleep(3.0)
        assert nodes[2].room.open == 0

    virtually(test)


async def second_turn(
    nodes: list[Member], first: dict[str, Any], second: dict[str, Any], *, allowed: bool = True
) -> tuple[Finished, list[int]]:
    """The end of a second turn, planned over other nodes, and the first position that each node computed of it."""
    setting = Setting(nodes, route(nodes[1].peer, nodes[2].peer))
    setting.generator.prefixes = KeptPrefixes(bytes(32))
    for node in nodes:
        node.room.goes_back = True
    history = [(31 * at) % 97 for at in range(300)]
    await setting.events(text=" ".join(map(str, history)), **first)
    prompt = [*history, *expected(history, 8), 5, 6, 7]
    for node in nodes:
        node.worker.steps.clear()
    setting.routes.routes, setting.routes.allowed = [route(nodes[3].peer, nodes[0].peer)], allowed
    events = await setting.events(text=" ".join(map(str, prompt)), **second)
    assert said(events) == shown(expected(prompt, 8))
    last = events[-1]
    assert isinstance(last, Finished)
    return last, [min(node.worker.steps)[0] if node.worker.steps else -1 for node in nodes]


def test_a_second_turn_goes_where_the_first_one_was_computed() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        last, begun = await second_turn(nodes, {"reader": "me"}, {"reader": "me"})
        assert last.reused == 307
        assert begun == [-1, 307, 307, -1]
        assert [stage["peer"] for stage in last.route] == [nodes[1].peer, nodes[2].peer]

    virtually(test)


@pytest.mark.parametrize(
    ("first", "second", "allowed"),
    [
        ({"reader": "me"}, {"reader": "you"}, True),
        ({"reader": "me"}, {"reader": ""}, True),
        ({"precision": "int8"}, {"precision": "bf16"}, True),
        ({}, {}, False),
        ({"echo": True, "sampling": Sampling(logprobs=0)}, {}, True),
    ],
)
def test_other_readers_precisions_and_routes_that_are_gone_begin_anew(first: dict[str, Any], second: dict[str, Any], allowed: bool) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        last, begun = await second_turn(nodes, first, second, allowed=allowed)
        assert last.reused == 0
        assert begun == [0, -1, -1, 0]

    virtually(test)


def test_switched_off_a_turn_neither_asks_nor_leaves() -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        setting = Setting(nodes, route(nodes[1].peer))
        nodes[1].room.goes_back = True
        await setting.events(text=" ".join(["3"] * 100))
        await until(lambda: not nodes[1].room.open, 3.0, "room given back")
        assert nodes[1].room.left == {}

    virtually(test)


class Ear:
    """Stands in for the auditor: hears what a session was, and how it ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[list[list[StageSpec]], list[int], bool]] = []

    def listen(self, stages: list[StageSpec], tokens: int) -> Listening:
        assert tokens == len(PROMPT)
        return Listening(stages, bytes(16), True, tokens)

    async def over(self, listening: Listening, *facts: Any, whole: bool, behind: int) -> None:
        assert behind == 0
        tokens = facts[-1]
        self.ended.append(([part.heard.stages for part in listening.parts(tokens)], tokens, whole))


def broken_from(position: int) -> Callable[[Step, Stepped], Stepped]:
    def spoil(step: Step, done: Stepped) -> Stepped:
        if step.position >= position:
            raise MfError("broken for good")
        return done

    return spoil


@pytest.mark.parametrize("how", ["length", "stop string", "left", "deadline", "replaced", "failed"])
def test_an_auditor_hears_of_every_end(how: str) -> None:
    async def test(nodes: list[Member], hub: MemoryHub) -> None:
        first, second = route(nodes[1].peer, nodes[2].peer), route(nodes[3].peer, nodes[2].peer)
        setting, ear = Setting(nodes, first, *([second] if how == "replaced" else [])), Ear()
        setting.generator.auditor = ear  # type: ignore[assignment]
        right = expected(PROMPT, 8)
        if how == "replaced":
            nodes[1].worker.break_at = len(PROMPT) + 3
        if how == "failed":
            nodes[1].worker.spoil = broken_from(len(PROMPT) + 3)
        if how == "left":
            async with aclosing(setting.generator.generate(ask())) as events:
                async for event in events:
                    if isinstance(event, Piece):
                        break
        elif how == "deadline":
            nodes[2].worker.stuck = True
            with pytest.raises(DeadlineExceeded):
                await setting.events(timeout=2.0)
        elif how == "failed":
            with pytest.raises(MfError):
                await setting.events()
        else:
            await setting.events(stop=[f"<{right[3]}>"] if how == "stop string" else [])
        [(routes, tokens, whole)] = ear.ended
        made = {"length": 8, "stop string": 4, "left": 1, "deadline": 0, "replaced": 8, "failed": 4}[how]
        assert tokens == PROMPT + right[:made]
        assert routes == {"replaced": [first, second], "deadline": []}.get(how, [first])
        assert whole == (how in ("length", "stop string", "replaced"))

    virtually(test)
