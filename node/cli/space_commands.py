"""Commands about the space lent here: block, drain, rebalance."""

from __future__ import annotations

from typing import Any

import click

from node.cli.session import Session, common
from protocol.errors import Cancelled


@click.command()
@click.argument("what", metavar="[MODEL|PUBLISHER]", required=False)
@click.option("--off", is_flag=True, help="Let it be stored here again.")
@common
def block(session: Session, what: str | None, off: bool) -> None:
    """Remove what lies here of MODEL|PUBLISHER and take nothing more of it; without either, say what is blocked."""
    if what is None and off:
        raise click.UsageError("--off says what to let in again: give a model or a publisher")
    done = session.call("block", {} if what is None else {"what": what, "block": not off})
    session.answer(done, lambda: _show_blocked(done, what, off))


def _show_blocked(done: dict[str, Any], what: str | None, off: bool) -> None:
    from node.cli.tables import size

    if what is not None:
        click.echo(f"{what} may be stored here again" if off else f"blocked {what}: removed {size(done['freed'])}")
        return
    blocked = [*done["publishers"], *done["models"]]
    click.echo("\n".join(blocked) if blocked else "nothing is blocked")


@click.command()
@common
def drain(session: Session) -> None:
    """Hand over everything that lies here to other nodes, then stop this one."""
    from node.cli.progress import Progress
    from node.cli.tables import size

    try:
        with Progress() as progress:
            done = session.call("drain", {}, progress)
    except Cancelled:
        raise Cancelled(
            "draining was stopped; this node goes on with what it still holds", hint="the same command hands over the rest"
        ) from None

    def show() -> None:
        said = f"handed over {_count(done['handed_over'], 'shard')} ({size(done['bytes'])}) to {_count(done['peers'], 'node')}"
        others = f", left {done['held_elsewhere']} that another node has as well" if done["held_elsewhere"] else ""
        nothing = not done["handed_over"] and not done["held_elsewhere"]
        click.echo("nothing lies here; stopping" if nothing else f"{said}{others}; stopping")

    session.answer(done, show)


@click.command()
@click.option("--rate", metavar="SIZE", help="Bytes a second to move at most, e.g. 20MB. [default: 4MB]")
@common
def rebalance(session: Session, rate: str | None) -> None:
    """Move shards from here to nodes that joined, as many as are their share."""
    from node.cli.progress import Progress
    from node.cli.tables import size
    from node.config import parse_size

    params = {} if rate is None else {"rate": parse_size(rate, "--rate")}
    try:
        with Progress() as progress:
            done = session.call("rebalance", params, progress)
    except Cancelled:
        raise Cancelled("moving was stopped; what was moved lies at its new home", hint="the same command goes on") from None

    def show() -> None:
        if not done["planned"]:
            click.echo("nothing to move: no node that is emptier than this one should hold any shard that lies here")
            return
        refused = "".join(f"\n  {peer}: {reason}" for peer, reason in done["refusals"].items())
        nodes = _count(done["peers"], "node")
        click.echo(f"moved {done['moved']} of {_count(done['planned'], 'shard')} ({size(done['bytes'])}) to {nodes}{refused}")

    session.answer(done, show)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
