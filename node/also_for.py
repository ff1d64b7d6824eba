"""A shard that several models share goes to another node: told there for each of them, so that each model's readers find it."""

from __future__ import annotations

from node.grant_book import GrantBook
from node.store.interface import ShardKey
from node.transfer.remote import Transfer
from protocol.ids import ModelId, PeerId
from protocol.messages import GrantAsk


async def tell_other_models(transfer: Transfer, grants: GrantBook, peer: PeerId, key: ShardKey, model: ModelId) -> None:
    """`peer` has taken the shard for `model`; raises what it, or the way to it, says against the other models kept here that need it."""
    for other, blobs in (await transfer.models()).items():
        if other != model and key.encoding in blobs:
            await grants.to_share(peer, other, [GrantAsk(key.encoding, [key.shard])])
