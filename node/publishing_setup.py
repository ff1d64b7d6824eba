"""What takes models in over HTTP, put together beside the verbs."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Executor
from pathlib import Path

from node.accounts.accounts import Accounts
from node.gather import Groups
from node.generate import Generator
from node.http.publishing import Publishing
from node.locate import Locator
from node.owned_models import OwnedModels
from node.private.models import PrivateModels
from node.private.sharing import Sharing
from node.private.vault import Vault
from node.publish import Publisher
from node.report import Reporter
from node.stage_room import StageRoom
from node.swarm.interface import Swarm
from node.unfinished import Unfinished
from node.uploads.finish import UploadFinisher
from node.uploads.upload import Upload
from node.uploads.uploads import Uploads
from node.webhooks.book import WebhookBook
from node.webhooks.deliver import Webhooks


def make_publishing(
    folder: Path,
    quota: int,
    compression: str,
    webhook_targets: Collection[str],
    accounts: Accounts,
    swarm: Swarm,
    vault: Vault,
    reporter: Reporter,
    publisher: Publisher,
    unfinished: Unfinished,
    locator: Locator,
    groups: Groups,
    room: StageRoom,
    generator: Generator,
    executor: Executor,
) -> Publishing:
    owned = OwnedModels(accounts.home, accounts.database, swarm, publisher.withdraw)
    webhooks = Webhooks(WebhookBook(accounts.database), webhook_targets)

    async def ended(upload: Upload) -> None:
        told = {"upload_id": upload.id, "model_id": upload.model_id, "name": upload.full_name}
        await webhooks.tell(upload.who, f"upload.{upload.stage}", told | {"error": upload.failure})

    sharing = Sharing(accounts.home, accounts, vault, swarm, publisher.withdraw)
    private = PrivateModels(vault, sharing, accounts, locator, reporter)
    finisher = UploadFinisher(publisher, owned, sharing, unfinished, locator, groups, room, generator, executor, compression)
    return Publishing(Uploads(folder, quota, finisher, executor, ended), owned, webhooks, sharing, private)
