"""Private models as a caller sees them: those that his identity may read, by name and id, and no others.

To everybody else a private model's id is that of a model nobody knows. Only the word of its true publisher counts on who may: the opened
manifest names him, so that a reader who shares on his own account shares nothing.
"""

from __future__ import annotations

import logging

from node.accounts.accounts import Accounts
from node.accounts.caller import Caller
from node.gateway import ModelInfo
from node.locate import Locator
from node.model_index import ModelQuery
from node.model_kinds import category_of, framework_of, tags_of
from node.private.sharing import Sharing
from node.private.vault import Opened, Vault, those_of
from node.report import Reporter
from protocol.errors import BadInput, NotFound
from protocol.ids import ModelId, model_from, model_text

log = logging.getLogger(__name__)


class PrivateModels:
    def __init__(self, vault: Vault, sharing: Sharing, accounts: Accounts, locator: Locator, reporter: Reporter) -> None:
        self._vault = vault
        self._sharing = sharing
        self._accounts = accounts
        self._locator = locator
        self._reporter = reporter

    async def visible(self, caller: Caller) -> list[Opened]:
        """Newest first."""
        identity = self._sharing.identity_of(caller)
        if identity is None:
            return []
        seed = await self._accounts.users.seed(caller.user) if caller.user else None
        found = those_of(await self._vault.opened(caller.user or "", seed), identity)
        return sorted(found, key=lambda opened: (-opened.said.created, opened.model))

    async def find(self, caller: Caller, text: str) -> Opened | None:
        """The private model meant; None where a public one may be meant, `NotFound` where it is private and not the caller's to see."""
        model = _id_of(text)
        if model is not None and not self._vault.known(model):
            return None
        found = [opened for opened in await self.visible(caller) if (opened.model == model if model else _named(opened, text))]
        for opened in found:
            if (await self._locator.locate(opened.model)).publisher == opened.publisher:
                return opened
        if model is not None:
            raise NotFound(f"no model is known by the name {text[:128]!r}", details={"candidates": []})
        return None

    async def info(self, opened: Opened) -> ModelInfo:
        said = opened.said
        storage = await self._reporter.storage(opened.model)
        return ModelInfo(
            model_id=model_text(opened.model),
            name=said.full_name(),
            publisher=opened.publisher,
            version=said.version,
            size_bytes=said.size,
            parameters=said.parameters,
            architecture=said.summary.architecture,
            context=said.summary.context,
            license=said.license,
            description=said.description,
            created_at=float(said.created),
            storage=storage,
            category=category_of(said.summary),
            framework=framework_of(said.summary),
            updated_at=float(said.updated or said.created),
            popularity=int(storage.get("holders") or 0),
            tags=tuple(tags_of(said.summary)),
            private=True,
        )


def matches(opened: Opened, query: ModelQuery) -> bool:
    """As the index would say of a public one."""
    said = opened.said
    words = f"{said.full_name()} {said.description or ''} {said.license or ''} {' '.join(tags_of(said.summary))}".lower()
    return (
        all(word in words for word in (query.search or "").lower().split())
        and query.category in (None, category_of(said.summary))
        and query.framework in (None, framework_of(said.summary))
        and (query.min_parameters is None or said.parameters >= query.min_parameters)
        and (query.max_parameters is None or said.parameters <= query.max_parameters)
    )


def _id_of(text: str) -> ModelId | None:
    try:
        return model_from(text)
    except BadInput:
        return None


def _named(opened: Opened, text: str) -> bool:
    said = opened.said
    return text in (said.name, f"{said.name}@{said.version}", f"{said.label}/{said.name}", said.full_name())
