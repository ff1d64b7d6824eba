"""What the owner may ask over the socket in the data directory: the command line's other end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from node.explain import Explainer
from node.fetch import Fetcher
from node.gateway import Finished, GenerationRequest, Piece, Planned, Queued, StageTime
from node.generate import Generator
from node.hurry import behind_replies
from node.keep_holdings import HoldingKeeper
from node.locate import Locator
from node.owner import Notify, OwnerMethod
from node.publish import Publisher, PublishRequest
from node.report import Reporter
from node.swarm.interface import Swarm
from node.transfer.remote import Transfer
from node.whom import whom
from protocol.errors import BadInput, NotFound
from protocol.ids import model_text
from protocol.messages import Sampling
from runtime.memory import DTYPE_WIDTH


class OwnerMethods:
    def __init__(
        self,
        swarm: Swarm,
        transfer: Transfer,
        locator: Locator,
        publisher: Publisher,
        fetcher: Fetcher,
        generator: Generator,
        explainer: Explainer,
        reporter: Reporter,
        keeper: HoldingKeeper,
        compression: str,
        stop: Callable[[], None],
    ) -> None:
        self._swarm = swarm
        self._transfer = transfer
        self._locator = locator
        self._publisher = publisher
        self._fetcher = fetcher
        self._generator = generator
        self._explainer = explainer
        self._reporter = reporter
        self._keeper = keeper
        self._compression = compression
        self._stop = stop

    def table(self) -> dict[str, OwnerMethod]:
        """Method names as the command line calls them."""
        return {
            "publish": self.publish,
            "models": self.models,
            "fetch": self.fetch,
            "generate": self.generate,
            "status": self.status,
            "ticket": self.ticket,
            "join": self.join,
            "trust": self.trust,
            "holdings": self.holdings,
            "holders": self.holders,
            "forget": self.forget,
            "pin": self.pin,
            "explain": self.explain,
            "stop": self.stop,
        }

    async def publish(self, params: dict[str, Any], notify: Notify) -> Any:
        request = PublishRequest(
            path=Path(text(params, "path")),
            name=optional(params, "name"),
            version=optional(params, "version") or "1",
            k=whole(params, "k"),
            n=whole(params, "n"),
            n_max=whole(params, "n_max"),
            compression=optional(params, "compression") or self._compression,
            gguf=gguf_choice(params),
        )
        return await self._publisher.publish(request, notify)

    async def models(self, params: dict[str, Any], notify: Notify) -> Any:
        found = await self._reporter.models(optional(params, "query"))
        return {
            "models": [
                {
                    "model_id": info.model_id,
                    "name": info.name,
                    "publisher": info.publisher,
                    "size_bytes": info.size_bytes,
                    "parameters": info.parameters,
                    "architecture": info.architecture,
                    "survives_losses": info.storage.get("survives_losses"),
                    "holders": info.storage.get("holders"),
                }
                for info in found
            ]
        }

    async def fetch(self, params: dict[str, Any], notify: Notify) -> Any:
        files, groups = names(params, "files"), names(params, "groups")
        with behind_replies():
            return await self._fetcher.fetch(text(params, "model"), Path(text(params, "dir")), notify, files, groups)

    async def generate(self, params: dict[str, Any], notify: Notify) -> Any:
        """Text arrives as events; the result is the last event's figures."""
        request = GenerationRequest(
            model=text(params, "model"),
            sampling=Sampling(
                temperature=number(params, "temperature", 0.0),
                top_p=number(params, "top_p", 1.0),
                seed=whole(params, "seed"),
            ),
            max_tokens=whole(params, "max_tokens"),
            messages=conversation(params),
            text=optional(params, "text"),
            stop=stops(params),
            continue_final=bool(params.get("continue_final")),
            precision=precision(params),
            force=params.get("force") is True,
        )
        async with aclosing(self._generator.generate(request)) as events:
            async for event in events:
                if isinstance(event, Planned):
                    await notify({"event": "planned", "kind": event.kind, "route": event.route, "model_id": event.model_id})
                elif isinstance(event, Queued):
                    await notify({"event": "queued", "position": event.position})
                elif isinstance(event, Piece):
                    await notify({"event": "text", "text": event.text, "tokens": event.tokens})
                elif isinstance(event, Finished):
                    return {
                        "event": "finished",
                        "reason": event.reason,
                        "prompt_tokens": event.prompt_tokens,
                        "completion_tokens": event.completion_tokens,
                        "route": event.route,
                        "timings": event.timings,
                        "replaced": event.replaced,
                        "reused": event.reused,
                        "stages": [told(stage) for stage in event.stages],
                    }
        return None

    async def status(self, params: dict[str, Any], notify: Notify) -> Any:
        return await self._reporter.status()

    async def ticket(self, params: dict[str, Any], notify: Notify) -> Any:
        return {"ticket": self._swarm.ticket()}

    async def join(self, params: dict[str, Any], notify: Notify) -> Any:
        return {"peers": await self._swarm.join(text(params, "ticket"))}

    async def trust(self, params: dict[str, Any], notify: Notify) -> Any:
        peer = whom(text(params, "who"), self._swarm.cards())
        self._swarm.trust(peer)
        return {"trusted": peer}

    async def holdings(self, params: dict[str, Any], notify: Notify) -> Any:
        return {"holdings": await self._reporter.holdings()}

    async def holders(self, params: dict[str, Any], notify: Notify) -> Any:
        return await self._reporter.holders(self._swarm.resolve(text(params, "model")))

    async def forget(self, params: dict[str, Any], notify: Notify) -> Any:
        model = self._swarm.resolve(text(params, "model"))
        if not await self._transfer.list_shards(model) and await self._locator.located_here(model) is None:
            raise NotFound(f"nothing of {model_text(model)} lies here")
        freed = await self._transfer.forget(model)
        self._locator.forget(model)
        await self._keeper.tell([model])
        return {"model_id": model_text(model), "freed": freed}

    async def pin(self, params: dict[str, Any], notify: Notify) -> Any:
        model, keep = self._swarm.resolve(text(params, "model")), params.get("keep", True) is True
        await self._transfer.pin(model, keep)
        return {"model_id": model_text(model), "pinned": keep}

    async def explain(self, params: dict[str, Any], notify: Notify) -> Any:
        return await self._explainer.explain(text(params, "model"), whole(params, "tokens"), precision(params), params.get("force") is True)

    async def stop(self, params: dict[str, Any], notify: Notify) -> Any:
        self._stop()
        return {"stopping": True}


def text(params: dict[str, Any], name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise BadInput(f"{name} is missing")
    return value


def precision(params: dict[str, Any]) -> str:
    """What the weights run in. In fp32, the reference, a reply doesn't depend on how its tokens were batched or replayed."""
    chosen = optional(params, "precision") or "bf16"
    if chosen not in DTYPE_WIDTH:
        raise BadInput(f"precision is {chosen[:16]!r}, {', '.join(DTYPE_WIDTH)} are known")
    return chosen


def gguf_choice(params: dict[str, Any]) -> str | None:
    chosen = optional(params, "gguf")
    if chosen not in (None, "dequantise", "keep"):
        raise BadInput(f"gguf is {chosen[:16]!r}, dequantise and keep are known")
    return chosen


def optional(params: dict[str, Any], name: str) -> str | None:
    value = params.get(name)
    if value is not None and not isinstance(value, str):
        raise BadInput(f"{name} must be text")
    return value or None


def whole(params: dict[str, Any], name: str) -> int | None:
    value = params.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise BadInput(f"{name} must be a whole number")
    return value


def conversation(params: dict[str, Any]) -> list[dict[str, str]] | None:
    value = params.get("messages")
    if value is None:
        return None
    if not isinstance(value, list) or not all(_is_message(message) for message in value):
        raise BadInput("messages must be a list of maps with role and content, all text")
    return value


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and {"role", "content"} <= value.keys() and all(isinstance(part, str) for part in value.values())


def stops(params: dict[str, Any]) -> tuple[str, ...]:
    value = params.get("stop") or []
    if not isinstance(value, list) or not all(isinstance(stop, str) for stop in value):
        raise BadInput("stop must be a list of texts")
    return tuple(value)


def names(params: dict[str, Any], name: str) -> tuple[str, ...]:
    value = params.get(name) or []
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise BadInput(f"{name} must be a list of names")
    return tuple(value)


def number(params: dict[str, Any], name: str, default: float) -> float:
    value = params.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadInput(f"{name} must be a number")
    return float(value)


def told(stage: StageTime) -> dict[str, Any]:
    """Seconds; `measured_by` None where the stage told nothing."""
    return dataclasses.asdict(stage) | {"measured_by": None if stage.decode is None else stage.peer}
