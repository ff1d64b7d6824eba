"""What the owner may ask about the space given here: block, drain, rebalance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from erasure.rebalance import RATE, Pace
from node.block_list import BlockList
from node.drain import Drainer
from node.hand_over import HandOver
from node.locate import Locator
from node.owner import Notify, OwnerMethod
from node.rebalancer import Rebalancer
from node.store.interface import ShardInfo
from node.swarm.interface import Swarm
from node.transfer.remote import Transfer
from node.whom import whom
from protocol.errors import BadInput, NotFound
from protocol.ids import ModelId, PeerId, model_text


class SpaceMethods:
    def __init__(
        self,
        swarm: Swarm,
        transfer: Transfer,
        locator: Locator,
        blocks: BlockList,
        hands: HandOver,
        drainer: Drainer,
        rebalancer: Rebalancer,
        stop: Callable[[], None],
    ) -> None:
        self._swarm = swarm
        self._transfer = transfer
        self._locator = locator
        self._blocks = blocks
        self._hands = hands
        self._drainer = drainer
        self._rebalancer = rebalancer
        self._stop = stop

    def table(self) -> dict[str, OwnerMethod]:
        """Method names as the command line calls them."""
        return {"block": self.block, "drain": self.drain, "rebalance": self.rebalance}

    async def block(self, params: dict[str, Any], notify: Notify) -> Any:
        """Blocks, or with `block` false unblocks; without `what` it only says what is blocked."""
        what, freed = params.get("what"), 0
        if what is not None:
            if not isinstance(what, str) or not what:
                raise BadInput("what is a model or a publisher")
            meant, blocked = self._meant(what), params.get("block", True) is True
            self._blocks.set(meant, blocked)
            freed = await self._clear(meant) if blocked else 0
        return {
            "models": [model_text(model) for model in sorted(self._blocks.models)],
            "publishers": sorted(self._blocks.publishers),
            "freed": freed,
        }

    def _meant(self, what: str) -> ModelId | PeerId:
        """A PeerID or `label~fingerprint` is a publisher, anything else names a model."""
        try:
            return whom(what, self._swarm.cards())
        except (BadInput, NotFound) as not_a_publisher:
            try:
                return self._swarm.resolve(what)
            except NotFound as not_a_model:
                if isinstance(not_a_publisher, NotFound):
                    raise not_a_publisher from None
                raise NotFound(
                    f"{what[:96]!r} is neither a model nor a publisher known here",
                    hint="give a model by its name or id (mf-node models), a publisher by its PeerID or as label~fingerprint",
                    details=not_a_model.details,
                ) from None

    async def _clear(self, what: ModelId | PeerId) -> int:
        """Nothing of it stays here; bytes freed."""
        if isinstance(what, bytes):
            self._locator.forget(ModelId(what))
            return await self._transfer.forget(ModelId(what))
        gone = [info for info in await self._transfer.list_shards() if await self._is_of(info, PeerId(what))]
        for info in gone:
            await self._hands.drop(info, "its publisher is blocked")
        for model in {info.model for info in gone}:
            if not await self._transfer.list_shards(model):
                self._locator.forget(model)
                await self._transfer.forget(model)
        return sum(info.bytes for info in gone)

    async def _is_of(self, info: ShardInfo, publisher: PeerId) -> bool:
        if info.owner == publisher:
            return True
        try:
            return (await self._hands.known(info.key.encoding)).signer == publisher
        except NotFound:
            return False

    async def drain(self, params: dict[str, Any], notify: Notify) -> Any:
        """Hands everything over, then ends the node."""
        done = await self._drainer.drain(notify)
        self._stop()
        return {**done, "stopping": True}

    async def rebalance(self, params: dict[str, Any], notify: Notify) -> Any:
        rate = params.get("rate")
        if rate is not None and (not isinstance(rate, int) or isinstance(rate, bool) or rate <= 0):
            raise BadInput("rate is a number of bytes a second, above 0")
        moved = await self._rebalancer.rebalance(notify, pace=Pace(float(rate or RATE)))
        return {
            "planned": moved.planned,
            "moved": moved.moved,
            "bytes": moved.bytes,
            "peers": len(moved.takers),
            "refusals": moved.refusals,
        }
