"""Commands about the swarm and this node: ticket, join, trust, holdings, status, stop."""

from __future__ import annotations

import sys
from typing import Any

import click

from node.cli.session import Session, common


@click.command()
@common
def ticket(session: Session) -> None:
    """Print a ticket that lets another node join. It is a secret."""
    made = session.call("ticket")
    session.answer(made, lambda: click.echo(made["ticket"]))


@click.command()
@click.argument("ticket")
@common
def join(session: Session, ticket: str) -> None:
    """Join the swarm of TICKET (`-` reads it from standard input)."""
    text = sys.stdin.read(4096) if ticket == "-" else ticket
    done = session.call("join", {"ticket": text.strip()})
    session.answer(done, lambda: click.echo(f"joined: {done['peers']} peers reached"))


@click.command()
@click.argument("who", metavar="PEER|PUBLISHER")
@common
def trust(session: Session, who: str) -> None:
    """Let PEER|PUBLISHER run what is asked here, and name models."""
    done = session.call("trust", {"who": who})
    session.answer(done, lambda: click.echo(f"trusted: {done.get('trusted', who)}"))


@click.command()
@click.argument("model", required=False)
@common
def holdings(session: Session, model: str | None) -> None:
    """Say what lies here, and whose it is; with MODEL, who in the swarm holds which of its shards."""
    if model is None:
        found = session.call("holdings")
        session.answer(found, lambda: _show_holdings(found["holdings"]))
        return
    holders = session.call("holders", {"model": model})
    session.answer(holders, lambda: _show_holders(holders))


def _show_holders(found: dict[str, Any]) -> None:
    from node.cli.tables import short, show_table

    rows = (
        (
            group["group"],
            f"{group['k']} of {group['n']}" + (f" (up to {group['n_max']})" if group["n_max"] > group["n"] else ""),
            str(group["survives_losses"]),
            "  ".join(f"{j}:{'+'.join(short(p) for p in who)}" for j, who in group["shards"].items()),
        )
        for group in found["groups"]
    )
    show_table(f"Holders of {found['model_id']}", ("group", "needs", "survives", "shard:peer"), rows)


def _show_holdings(found: list[dict[str, Any]]) -> None:
    from node.cli.tables import short, show_table, size

    rows = (
        (
            short(line["model_id"]),
            str(line["groups"]),
            str(line["shards"]),
            size(line["bytes"]),
            str(line["full_groups"]),
            ", ".join(short(str(owner)) for owner in line.get("owners", [])),
        )
        for line in found
    )
    show_table("Holdings", ("model", "groups", "shards", "size", "full", "whose"), rows)


@click.command()
@common
def status(session: Session) -> None:
    """Show the node, its peers, its space and the models it knows."""
    found = session.call("status")
    session.answer(found, lambda: _show_status(found))


def _show_status(found: dict[str, Any]) -> None:
    from node.cli.tables import ago, short, show_table, size, word

    space = found["space"]
    saved = f", {size(space['saved'])} saved by sharing" if space.get("saved") else ""
    click.secho(f"{found['peer_id']}  (version {found['version']})", bold=True)
    click.echo(f"space: {size(space['used'])} used of {size(space['quota'])}, {size(space['free'])} free on the disk{saved}\n")
    show_table(
        "Peers",
        ("peer", "alive", "rtt", "seen", "addresses"),
        (
            (
                short(peer["peer_id"]),
                "yes" if peer["alive"] else "no",
                "–" if peer["rtt_ms"] is None else f"{peer['rtt_ms']:.1f} ms",
                ago(peer["last_seen"]),
                " ".join(peer["addresses"]),
            )
            for peer in found["peers"]
        ),
    )
    _show_holdings(found["holdings"])
    show_table(
        "Models",
        ("name", "survives", "holders", "id"),
        ((model.get("name") or "–", _survives(model), word(model["holders"]), short(model["model_id"])) for model in found["models"]),
    )
    for line in found["publishing"]:
        click.echo(f"still publishing {line['name']}: {line['durable']} of {line['shards']} shards are durable")
    if found["blamed"]:
        rows = ((short(str(line["peer_id"])), word(line.get("shard")), str(line["reason"]), ago(line["at"])) for line in found["blamed"])
        show_table("Blamed", ("peer", "shard", "reason", "when"), rows)


def _survives(model: dict[str, Any]) -> str:
    from node.cli.tables import word

    weakest = model.get("weakest_group")
    return word(model["survives_losses"]) + (f" ({weakest})" if weakest else "")


@click.command()
@common
def stop(session: Session) -> None:
    """Stop the running node of this data directory."""
    done = session.call("stop")
    session.answer(done, lambda: click.echo("stopping"))
