"""What lies here of an account beside the account itself: uploads, webhooks, teams, models and what is shared with it."""

from __future__ import annotations

from typing import Any

import msgspec

from node.accounts.users import User
from node.http.api_v1_upload import status_of
from node.http.model_replies import moment
from node.http.publishing import Publishing
from protocol.ids import model_text


async def belongings(publishing: Publishing, user: User) -> dict[str, Any]:
    """For the account's owner alone: the webhooks' secrets are in it."""
    who, sharing = user.public.hex(), publishing.sharing
    hooks = await publishing.webhooks.book.of(who)
    teams = await sharing.teams.mine(who)
    return {
        "uploads": [msgspec.to_builtins(status_of(upload)) for upload in publishing.uploads.mine(who)],
        "webhooks": [
            {"id": hook.id, "url": hook.url, "events": list(hook.events), "secret": hook.secret, "created_at": moment(hook.created)}
            for hook in hooks
        ],
        "teams": [{"name": name, "members": [one.hex() for one in members]} for name, members in teams.items()],
        "member_of": await sharing.teams.of_member(user.public),
        "models": [
            {"name": f"{one.name}@{one.version}", "model_id": model_text(one.model), "created_at": moment(one.created)}
            for one in publishing.owned.of(who)
        ],
        "shared": [{"model_id": model_text(model), "role": role} for model, role in sharing.shared_with(user.public).items()],
    }


async def forget(publishing: Publishing, user: User) -> None:
    """Ends uploads that run, and removes all of it but published models: those belong to who holds them."""
    who = user.public.hex()
    for upload in publishing.uploads.mine(who):
        await publishing.uploads.cancel(upload)
    await publishing.webhooks.book.forget(who)
    await publishing.sharing.forget(who, user.public)
