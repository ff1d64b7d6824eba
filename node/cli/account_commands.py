"""Commands about accounts: keys, tiers, the audit log."""

from __future__ import annotations

from typing import Any

import click

from node.cli.session import Session, common

_PAGE = 50
SCOPES = ("inference", "models:read", "models:write", "account", "admin")


@click.group()
def key() -> None:
    """Make, list and revoke API keys."""


@key.command("create")
@click.option("--name", help="What it is for.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="May be repeated. [default: inference, models:read]")
@click.option("--user", metavar="NAME", help="For an account that is at home here; without it, the owner's own.")
@common
def create(session: Session, name: str | None, scopes: tuple[str, ...], user: str | None) -> None:
    """Make a key and print it, this once."""
    made = session.call("key_create", {"name": name, "scopes": list(scopes), "user": user})
    session.answer(made, lambda: click.echo(made["api_key"]))


@key.command("list")
@common
def list_keys(session: Session) -> None:
    """Show the keys made here, without their secrets."""
    from node.cli.tables import ago, show_table

    found = session.call("key_list")
    rows = ((one["id"], one["name"], one["user"] or "owner", " ".join(one["scopes"]), ago(one["created_at"])) for one in found["keys"])
    session.answer(found, lambda: show_table("Keys", ("id", "name", "whose", "scopes", "made"), rows))


@key.command("revoke")
@click.argument("id")
@common
def revoke(session: Session, id: str) -> None:
    """Refuse the key ID from now on, here and at the nodes that its tokens are for."""
    done = session.call("key_revoke", {"id": id})
    session.answer(done, lambda: click.echo(f"revoked {done['revoked']}"))


@click.group()
def account() -> None:
    """Show accounts and say how much of this node they may use."""


@account.command("list")
@common
def list_accounts(session: Session) -> None:
    """Show accounts of this node, and identities of others that have been here."""
    from node.cli.tables import short, show_table

    found = session.call("account_list")
    rows = ((one["name"], one["tier"], short(one["home"])) for one in found["accounts"])
    session.answer(found, lambda: show_table("Accounts", ("name", "tier", "home"), rows))


@account.command("tier")
@click.argument("name", metavar="NAME@FINGERPRINT")
@click.argument("tier", type=click.Choice(["free", "known", "contributor", "supporter", "unlimited"]))
@common
def set_tier(session: Session, name: str, tier: str) -> None:
    """Give an account or identity a tier."""
    done = session.call("account_tier", {"name": name, "tier": tier})
    session.answer(done, lambda: click.echo(f"{done['name']} is {done['tier']}"))


@click.group()
def callers() -> None:
    """Say who may come in over HTTP and who may not; in force at once.

    A CALLER is an address or network, an account (its key, or name@fingerprint as met here), or a home's PeerID.
    """


@callers.command("list")
@common
def list_callers(session: Session) -> None:
    """Show both lists."""
    from node.cli.tables import show_table

    found = session.call("callers")
    rows = ((one["caller"], one["name"] or "", name) for name in ("allow", "deny") for one in found[name])
    session.answer(found, lambda: show_table("Callers", ("caller", "name", "list"), rows))


@callers.command("allow")
@click.argument("caller")
@common
def allow_caller(session: Session, caller: str) -> None:
    """Let CALLER in. From the first one on, nobody else comes in."""
    done = session.call("callers_put", {"who": caller, "list": "allow"})
    session.answer(done, lambda: click.echo(f"{done['caller']} is let in, and nobody who isn't on that list"))


@callers.command("deny")
@click.argument("caller")
@common
def deny_caller(session: Session, caller: str) -> None:
    """Keep CALLER out."""
    done = session.call("callers_put", {"who": caller, "list": "deny"})
    session.answer(done, lambda: click.echo(f"{done['caller']} is kept out"))


@callers.command("drop")
@click.argument("caller")
@common
def drop_caller(session: Session, caller: str) -> None:
    """Take CALLER off the lists."""
    done = session.call("callers_drop", {"who": caller})
    session.answer(done, lambda: click.echo(f"{done['caller']} is on no list"))


@click.group()
def audit() -> None:
    """Read and check the audit log, and what audits of stages found."""


@audit.command("verify")
@common
def verify(session: Session) -> int:
    """Check every line of the audit log against the one before and the signed head. Exit code 4 where it doesn't hold."""
    told = session.call("journal_verify")
    said = f"{told['lines']} lines hold" if told["fault"] is None else f"the audit log doesn't hold: {told['fault']}"
    session.answer(told, lambda: click.echo(said))
    return 0 if told["fault"] is None else 4


@audit.command("show")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1_000))
@common
def show(session: Session, limit: int) -> None:
    """Show its newest lines."""
    import json

    told = session.call("journal_read", {"limit": limit})
    session.answer(told, lambda: click.echo("\n".join(json.dumps(entry) for entry in told["entries"])))


@audit.command("stages")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="The newest findings.")
@click.option("--verify", is_flag=True, help="Check every signature and draw the verdicts again. Exit code 4 where one doesn't hold.")
@common
def stages(session: Session, limit: int, verify: bool) -> int:
    """Show which nodes' stages were found to compute something else, by whom and what was signed."""
    from node.cli.tables import ago, short, show_table

    told: dict[str, Any] = {"findings": [], "damaged": [], "next": None, "counts": {}}
    while limit > 0:
        page = session.call("stage_audits", {"limit": min(limit, _PAGE), "below": told["next"], "verify": verify})
        told = {**page, "findings": told["findings"] + page["findings"], "damaged": told["damaged"] + page["damaged"]}
        limit -= len(page["findings"]) + len(page["damaged"])
        if page["next"] is None:
            break

    def show() -> None:
        rows = (
            (
                str(one["number"]), ago(one["at"]), short(one["wrong"]) if one["wrong"] else "nobody",
                f"{one['first']}..{one['end']} of {short(one['model_id'])}", one["precision"], f"{one['apart']} of {one['rows']}",
                one["fault"] or one["why"],
            )
            for one in told["findings"]
        )  # fmt: skip
        show_table("Stages found out", ("number", "when", "blamed", "layers", "precision", "apart", "why"), rows)
        for one in told["damaged"]:
            click.echo(f"{one['number']} isn't as it was written, and is left out: {one['fault']}")
        steps = told["counts"]["steps"]
        click.echo(f"{steps['audited']} of {steps['run']} steps were run again; {steps['drawn']} were drawn, {steps['dropped']} dropped")

    session.answer(told, show)
    return 4 if told["damaged"] or any(one["fault"] for one in told["findings"]) else 0
