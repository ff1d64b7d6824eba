"""What the API needs of the node to take models in and to change them; an application without it refuses these paths."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from node.owned_models import OwnedModels
from node.private.models import PrivateModels
from node.private.sharing import Sharing
from node.uploads.uploads import Uploads
from node.webhooks.deliver import Webhooks
from protocol.errors import MfError


@dataclass(frozen=True)
class Publishing:
    uploads: Uploads
    owned: OwnedModels
    webhooks: Webhooks
    sharing: Sharing
    private: PrivateModels


PUBLISHING: web.AppKey[Publishing] = web.AppKey("publishing", Publishing)


def publishing_of(request: web.Request) -> Publishing:
    found = request.app.get(PUBLISHING)
    if found is None:
        raise MfError("this node takes no models over HTTP")
    return found
