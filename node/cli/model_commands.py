"""Commands about models: publish, models, fetch, forget, explain."""

from __future__ import annotations

import os
from typing import Any

import click

from node.cli.session import Session, common
from protocol.errors import Cancelled
from runtime.memory import WIDTHS


@click.command()
@click.argument("path", type=click.Path())
@click.option("--name", help="The model's name. [default: the directory's]")
@click.option("--version", "edition", help="The version of that name. [default: 1]")
@click.option("--k", type=click.IntRange(1, 256), help="Shards needed to read a group.")
@click.option("--n", type=click.IntRange(1, 256), help="Shards made of a group.")
@click.option("--n-max", type=click.IntRange(1, 256), help="Shards a group can grow to where nodes turn out to be up less. [default: n]")
@click.option("--compression", type=click.Choice(["auto", "raw", "fast"]), help="[default: auto]")
@click.option("--gguf", type=click.Choice(["dequantise", "keep"]), help="What becomes of a GGUF file. [default: dequantise]")
@common
def publish(session: Session, path: str, name: str | None, edition: str | None, **coding: Any) -> None:
    """Store the model in directory, or GGUF file, PATH in the swarm, and announce it."""
    from node.cli.progress import Progress

    params = {"path": os.path.abspath(os.path.expanduser(path)), "name": name, "version": edition, **coding}
    try:
        with Progress() as progress:
            done = session.call("publish", params, progress)
    except Cancelled:
        raise Cancelled("publishing was stopped", hint="the same command goes on with what is already stored") from None
    session.answer(done, lambda: _show_published(done))


def _show_published(done: dict[str, Any]) -> None:
    from node.cli.tables import size

    click.secho(f"published {done['name']}", bold=True)
    click.echo(f"  {done['model_id']}")
    click.echo(
        f"  {size(done['bytes'])} in {done['groups']} groups, {done['durable']} of {done['shards']} shards durable "
        f"({size(done['stored_bytes'])}) on {_nodes(done['peers'])}, {done['seconds']:.1f} s"
    )
    if done.get("saved_bytes"):
        click.echo(f"  {size(done['saved_bytes'])} of it lay there already")
    if done["survives_losses"]:
        click.echo(f"  survives the loss of any {done['survives_losses']} of them")
    else:
        click.echo("  survives the loss of none of them yet: more nodes must join")


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"


@click.command()
@click.argument("query", required=False)
@common
def models(session: Session, query: str | None) -> None:
    """List the models this node knows, or those that match QUERY."""
    found = session.call("models", {"query": query})
    session.answer(found, lambda: _show_models(found["models"], query))


def _show_models(found: list[dict[str, Any]], query: str | None) -> None:
    from node.cli.tables import short, show_table, size, word

    if query and not found:
        click.echo(f"no model matches {query!r}; `mf-node models` lists all that this node knows")
        return
    show_table(
        "Models",
        ("name", "size", "survives", "holders", "architecture", "id"),
        (
            (
                model.get("name") or "–",
                size(model.get("size_bytes")),
                word(model.get("survives_losses")),
                word(model.get("holders")),
                word(model.get("architecture")),
                short(model["model_id"]),
            )
            for model in found
        ),
    )


@click.command()
@click.argument("model")
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option("--file", "files", metavar="NAME", multiple=True, help="Only this file; may be repeated.")
@click.option("--group", "groups", metavar="NAME", multiple=True, help="Only this group's bytes (layer.7); may be repeated.")
@common
def fetch(session: Session, model: str, folder: str, files: tuple[str, ...], groups: tuple[str, ...]) -> None:
    """Rebuild the files of MODEL, bit for bit, in DIR."""
    from node.cli.progress import Progress
    from node.cli.tables import size

    with Progress() as progress:
        wanted = {"model": model, "dir": os.path.abspath(os.path.expanduser(folder)), "files": list(files), "groups": list(groups)}
        done = session.call("fetch", wanted, progress)
    count = f"{done['files']} files" + (f", {len(done['groups'])} groups" if done.get("groups") else "")
    session.answer(done, lambda: click.echo(f"fetched {model} into {folder}: {count}, {size(done['bytes'])}, {done['seconds']:.1f} s"))


@click.command()
@click.argument("model")
@common
def forget(session: Session, model: str) -> None:
    """Remove what lies here of MODEL."""
    from node.cli.tables import size

    done = session.call("forget", {"model": model})
    session.answer(done, lambda: click.echo(f"removed {size(done['freed'])} of {done['model_id']}"))


@click.command()
@click.argument("model")
@click.option("--off", is_flag=True, help="Take the pin away.")
@common
def pin(session: Session, model: str, off: bool) -> None:
    """Keep what lies here of MODEL for as long as the pin stands."""
    done = session.call("pin", {"model": model, "keep": not off})
    session.answer(done, lambda: click.echo(f"{done['model_id']} is {'pinned' if done['pinned'] else 'not pinned any more'}"))


@click.command()
@click.argument("model")
@click.option("--tokens", type=click.IntRange(1), help="Question and answer together. [default: 2048]")
@click.option("--precision", type=click.Choice(list(WIDTHS)), default="bf16", show_default=True)
@click.option("--force", is_flag=True, help="Also beyond the round-trip budget.")
@common
def explain(session: Session, model: str, **asked: Any) -> None:
    """Say where MODEL would run if asked now, why, and how fast, without running it."""
    plan = session.call("explain", {"model": model, **asked})
    session.answer(plan, lambda: _show_plan(plan))


def _show_plan(plan: dict[str, Any]) -> None:
    from node.cli.tables import short, show_table, size, word

    click.secho(f"{plan['kind']}: {plan['why']}", bold=True)
    rows = [
        (str(number), f"{one['first']}–{one['end'] - 1}", one["peer"], size(one["bytes"]), f"{one['ms_per_token']} ms", one["basis"])
        for number, one in enumerate(plan["stages"], 1)
    ]
    show_table("Stages", ("stage", "layers", "peer", "memory", "per token", "figure"), rows)
    if plan["engine"] is not None:
        click.echo(f"engine here: {plan['engine']['name']} ({plan['engine']['why']})")
    if plan["expected"] is not None:
        expected, budget = plan["expected"], plan["budget"]
        first = f"the first after {expected['first_token_seconds']} s for a question of {expected['prompt_tokens']}"
        click.echo(f"expected: {expected['tokens_per_second']} tokens/s, {first} (loading not counted)")
        beyond = "" if budget["within"] else " (refused unless forced)" if budget["refused"] else " (forced)"
        click.echo(f"network: {budget['needed_ms']} of {budget['budget_ms']} ms per token{beyond}")
    considered = (
        (short(line["peer"]), "–" if line["memory"] is None else size(line["memory"]), word(line["rtt_ms"]), line["verdict"])
        for line in plan["considered"]
    )
    show_table("Considered", ("peer", "memory", "rtt ms", "verdict"), considered)
