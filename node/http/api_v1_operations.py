"""What the OpenAPI document says of /api/v1's accounts."""

from __future__ import annotations

from typing import Any

from node.http import account_schemas as accounts
from node.http import job_schemas as jobs
from node.http import share_schemas as shares
from node.http import upload_schemas as uploads
from node.http.operation import ANY, ASK, ONE, Operation

_OWN = (*ANY, 507)
_ONE = (*ONE, 507)
_SENT = (*ONE, 409, 507)
"""Statuses of failure: of what is written about the caller, about one thing of his, and where something else may be in the way."""
_PLAIN = dict[str, Any]


def _account(method: str, path: str, summary: str, reply: Any, body: Any = None, **more: Any) -> Operation:
    usual = {"errors": ANY if method == "get" else _OWN}
    return Operation(method, f"/api/v1{path}", summary, reply, body, wrapped=True, **{**usual, **more})


OPERATIONS = [
    _account("post", "/auth/register", "A new account here, and its first key", accounts.Registered, accounts.RegisterRequest,
             status=201, errors=(*_OWN, 409)),
    _account("post", "/auth/login", "Tokens for a password, at the account's home", accounts.LoggedIn, accounts.LoginRequest),
    _account("post", "/auth/refresh", "The next pair of tokens; one used twice ends the login", accounts.LoggedIn, accounts.RefreshRequest),
    _account("post", "/auth/logout", "End the login that the access token came from", accounts.Done),
    _account("post", "/auth/totp", "Begin to use one-time codes", accounts.Enrolled, accounts.ConfirmRequest, errors=(*_OWN, 409)),
    _account("post", "/auth/totp/confirm", "Turn one-time codes on", accounts.RecoveryCodes, accounts.CodeRequest, errors=(*_OWN, 409)),
    _account("delete", "/auth/totp", "Turn one-time codes off", accounts.Done, accounts.ConfirmRequest),
    _account("get", "/auth/keys", "The account's keys", accounts.Keys),
    _account("post", "/auth/keys", "A new key, no wider than the credential", accounts.MadeKey, accounts.KeyBody, status=201),
    _account("delete", "/auth/keys/{key}", "Revoke a key everywhere", accounts.Done, errors=_ONE),
    _account("get", "/auth/keys/{key}/link", "The home's word for a key, to make tokens from", accounts.KeyLink, errors=ONE),
    _account("post", "/auth/tokens", "The credential narrowed to one node", accounts.MadeToken, accounts.TokenBody),
    _account("get", "/users/me", "Who this node takes the caller for", accounts.Me),
    _account("delete", "/users/me", "Delete the account", accounts.Done, accounts.ConfirmRequest),
    _account("get", "/users/me/export", "Everything kept about the caller", _PLAIN),
    _account("get", "/users/me/usage", "What the caller used", accounts.UsageReport, query=accounts.UsageQuery),
    _account("get", "/inference/{inference}", "How an async request is, and its result", jobs.JobState, errors=ONE),
    _account("delete", "/inference/{inference}", "Cancel an async request, or forget its result", _PLAIN, errors=ONE),
    _account("post", "/inference/compare", "Ask several models the same", jobs.Comparison, jobs.CompareRequest, errors=ASK,
             idempotent=True),
    _account("post", "/models/{id}/inference/batch", "Many questions at once", jobs.BatchReply, jobs.BatchRequest, errors=ASK,
             idempotent=True),
    _account("post", "/models/upload", "Begin an upload: multipart (metadata, then files), or JSON that declares the files",
             uploads.UploadStatus, uploads.UploadRequest, status=201, later=uploads.UploadStatus,
             headers=("Location",), body_media="multipart/form-data", errors=_SENT),
    _account("get", "/models/upload", "The caller's uploads", uploads.UploadList),
    _account("get", "/models/upload/{upload}/status", "How far an upload is, and what was tried of it", uploads.UploadStatus, errors=ONE),
    _account("post", "/models/upload/{upload}/complete", "No more files come: publish it", uploads.UploadStatus, status=202,
             headers=("Location",), errors=_SENT),
    _account("put", "/models/upload/{upload}/files/{name}", "Bytes of a file; Content-Range says which", uploads.FileState,
             body_media="application/octet-stream", ranged=True, headers=("Range",), errors=_SENT),
    _account("delete", "/models/upload/{upload}", "End an upload and forget it", _PLAIN, errors=_SENT),
    _account("patch", "/models/{id}", "Say something else of an own model", uploads.ChangedModel, uploads.ModelChange, errors=_SENT),
    _account("delete", "/models/{id}", "Take back an own model", uploads.Withdrawn, errors=_SENT),
    _account("post", "/models/{id}/share", "Let somebody read an own private model", shares.Sharers, shares.ShareRequest, errors=_SENT),
    _account("get", "/models/{id}/share", "Whom an own private model is shared with", shares.Sharers, errors=ONE),
    _account("delete", "/models/{id}/share", "Let somebody read it no more", shares.Sharers, shares.UnshareRequest, errors=_SENT),
    _account("post", "/teams", "A new team", shares.Team, shares.TeamRequest, status=201, errors=_SENT),
    _account("get", "/teams", "The caller's teams", shares.TeamList),
    _account("put", "/teams/{team}/members", "One more in a team", shares.Team, shares.MemberRequest, errors=_SENT),
    _account("delete", "/teams/{team}/members/{identity}", "One less in a team", shares.Team, errors=_SENT),
    _account("delete", "/teams/{team}", "End a team", _PLAIN, errors=_SENT),
    _account("post", "/webhooks", "Be told of uploads and batches that end", uploads.MadeWebhook, uploads.WebhookRequest, status=201),
    _account("get", "/webhooks", "The caller's webhooks", uploads.WebhookList),
    _account("delete", "/webhooks/{webhook}", "Be told no more", _PLAIN, errors=_ONE),
    _account("get", "/callers", "Whom the owner lets in, and whom not", accounts.CallerLists),
    _account("put", "/callers", "Put a caller on a list, in force at once", accounts.CallerLists, accounts.CallerRule, errors=_SENT),
    _account("delete", "/callers", "Take a caller off the lists", accounts.CallerLists, accounts.CallerNamed, errors=_SENT),
    _account("get", "/audit", "The audit log, newest first", _PLAIN, query=accounts.AuditQuery),
    _account("get", "/audit/stages", "What audits found of other nodes' stages, newest first", accounts.StageAudits,
             query=accounts.StageAuditQuery, errors=(*_OWN, 404)),
]  # fmt: skip
