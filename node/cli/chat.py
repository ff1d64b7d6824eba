"""`chat`: one answer, or a conversation, streamed as it is made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from node.cli.go_on import Asker, ask_in_turn
from node.cli.session import Session, common
from node.cli.tables import plain
from protocol.errors import Cancelled, MfError
from runtime.memory import WIDTHS


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", help="The system message.")
@click.option("--max-tokens", type=click.IntRange(1), help="Most tokens of a reply.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True, help="0: always the likeliest token.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int, help="Makes a sampled reply repeatable.")
@click.option("--precision", type=click.Choice(list(WIDTHS)), default="bf16", show_default=True, help="fp32: the reference.")
@click.option("--api", multiple=True, metavar="URL", help="Ask the node there; may be repeated: the next goes on when one dies.")
@click.option("--key", "keys", multiple=True, envvar="MF_API_KEY", metavar="KEY", help="For --api: an API key or token. [env: MF_API_KEY]")
@click.option("--cacert", type=click.Path(), metavar="FILE", help="For --api https://: trust the certificates in this PEM file.")
@click.option("--force", is_flag=True, help="Also over a route beyond the round-trip budget.")
@click.option("--stop", multiple=True, help="A text that ends the reply; may be repeated.")
@click.option("--timings", is_flag=True, help="Also show where the time went, stage by stage.")
@common
def chat(session: Session, model: str, prompt: str | None, system: str | None, timings: bool, **sampling: Any) -> None:
    """Ask MODEL. Without PROMPT, a conversation until Ctrl-D. With several --api a reply outlives the node that makes it."""
    sampling["stop"] = list(sampling["stop"])
    messages = [{"role": "system", "content": system}] if system else []
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is None:
        _converse(session, model, messages, sampling, timings)
        return
    messages.append({"role": "user", "content": prompt})
    reply = _ask(session, model, messages, sampling)
    session.answer(reply, lambda: _show_end(reply, timings))


def _ask(session: Session, model: str, messages: list[dict[str, str]], sampling: dict[str, Any]) -> dict[str, Any]:
    """The reply; its text is printed as it comes unless --json."""
    made: list[str] = []
    planned: dict[str, Any] = {}

    waiting = Waiting(shown=not session.json)

    def on_event(event: dict[str, Any]) -> None:
        if event.get("event") == "text":
            waiting.end()
            made.append(str(event["text"]))
            if not session.json:
                sys.stdout.write(plain(made[-1]))
                sys.stdout.flush()
        elif event.get("event") == "planned":
            planned.update(event)
        elif event.get("event") == "queued":
            waiting.note(f"number {event['position']} in line")

    try:
        asked = {
            "model": model,
            "messages": messages,
            **{name: value for name, value in sampling.items() if name not in ("api", "keys", "cacert")},
        }
        askers = _askers(session, sampling.get("api") or (), sampling.get("keys") or (), sampling.get("cacert"))
        end = ask_in_turn(askers, asked, on_event)
    finally:
        waiting.end()
        if not session.json and made:
            sys.stdout.write("\n")
    fields = {name: value for name, value in end.items() if name != "event"}
    return {"model": model, "model_id": planned.get("model_id"), "kind": planned.get("kind"), "text": "".join(made), **fields}


def _askers(session: Session, apis: Sequence[str], keys: Sequence[str], cacert: str | None) -> list[Asker]:
    """The nodes at `apis` in their order, each with its key; without any, the one of the data directory."""
    from node.cli.api_client import keys_for, stream_chat

    def own(asked: dict[str, Any], on_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        return dict(session.call("generate", asked, on_event) or {})

    def there(api: str, key: str | None) -> Asker:
        def ask(asked: dict[str, Any], on_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
            try:
                return stream_chat(api, asked, on_event, key, cacert)
            except KeyboardInterrupt:
                raise Cancelled("the reply was stopped by Ctrl-C") from None

        return ask

    return [there(api, key) for api, key in zip(apis, keys_for(apis, keys), strict=True)] if apis else [own]


class Waiting:
    """Says on a terminal that something goes on until the first word: a model's first load takes seconds."""

    def __init__(self, shown: bool) -> None:
        self._status: Any = None
        if shown and sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status("thinking (the first answer loads the model)", spinner="dots")
            self._status.start()

    def note(self, what: str) -> None:
        if self._status is not None:
            self._status.update(what)

    def end(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None


def _converse(session: Session, model: str, messages: list[dict[str, str]], sampling: dict[str, Any], timings: bool) -> None:
    """The messages live here, not in the node: when that dies, the next question brings the whole conversation along."""
    try:
        import readline

        readline.set_auto_history(True)
    except ImportError:
        click.echo("(no line editing here)", err=True)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if line:
            _turn(session, model, messages, line, sampling, timings)


def _turn(session: Session, model: str, messages: list[dict[str, str]], line: str, sampling: dict[str, Any], timings: bool = False) -> None:
    asked = [*messages, {"role": "user", "content": line}]
    try:
        reply = _ask(session, model, asked, sampling)
    except Cancelled:
        click.secho("(stopped)", dim=True, err=True)
        return
    except MfError as error:
        click.secho(f"{error}", fg="red", err=True)
        click.echo("The conversation is kept: ask again, or Ctrl-D to leave.", err=True)
        return
    messages[:] = [*asked, {"role": "assistant", "content": reply["text"]}]
    _show_end(reply, timings)


def _show_end(reply: dict[str, Any], every: bool = False) -> None:
    timings = reply.get("timings") or {}
    tokens, route = reply.get("completion_tokens"), reply.get("route") or []
    first, total = timings.get("first_token"), timings.get("total")
    words = [f"{tokens} tokens", f"{len(route)} stage{'s' if len(route) != 1 else ''}"]
    if first is not None:
        words.append(f"first after {first:.2f} s")
    if first is not None and total is not None and tokens and tokens > 1 and total > first:
        words.append(f"{(tokens - 1) / (total - first):.1f} tokens/s")
    click.secho(f"[{' · '.join(words)}]", dim=True, err=True)
    if every:
        _show_timings(timings, reply.get("stages") or [])


def _show_timings(timings: dict[str, float], stages: list[dict[str, Any]]) -> None:
    """On standard error, so that standard output stays the reply."""
    from node.cli.tables import short, word

    parts = [f"{name} {1e3 * seconds:.1f} ms" for name, seconds in timings.items()]
    click.secho(f"here: {' · '.join(parts)}", dim=True, err=True)
    for number, stage in enumerate(stages, 1):
        told = (f"{part} {word(_ms(stage.get(part)))} ms" for part in ("prefill", "decode", "wait"))
        who = f"stage {number}, layers {stage.get('first')}–{int(stage.get('end') or 0) - 1} at {short(str(stage.get('peer')))}"
        click.secho(f"{who}: {' · '.join(told)} (its own figures)", dim=True, err=True)


def _ms(seconds: Any) -> float | None:
    return round(1e3 * seconds, 1) if isinstance(seconds, int | float) else None
