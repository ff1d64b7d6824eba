"""Commands about the space lent here: block, drain, rebalance."""

from __future__ import annotations

from typing import Any

import click

from node.cli.session import Session, common


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

    with Progress() as progress:
        done = session.call("drain", {}, progress)

    def show() -> None:
        said = f"handed over {done['handed_over']} shards ({size(done['bytes'])}) to {done['peers']} nodes"
        others = f", {done['held_elsewhere']} more lie elsewhere too" if done["held_elsewhere"] else ""
        click.echo(f"{said}{others}; stopping")

    session.answer(done, show)


@click.command()
@click.option("--rate", metavar="SIZE", help="Bytes a second to move at most, e.g. 20MB. [default: 4MB]")
@common
def rebalance(session: Session, rate: str | None) -> None:
    """Move shards from here to nodes that joined, as many as are their share."""
    from node.cli.progress import Progress
    from node.cli.tables import size
    from node.config import parse_size

    with Progress() as progress:
        done = session.call("rebalance", {} if rate is None else {"rate": parse_size(rate, "--rate")}, progress)

    def show() -> None:
        refused = "".join(f"\n  {peer}: {reason}" for peer, reason in done["refusals"].items())
        click.echo(f"moved {done['moved']} of {done['planned']} shards ({size(done['bytes'])}) to {done['peers']} nodes{refused}")

    session.answer(done, show)
