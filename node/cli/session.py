"""What every command shares: the two options accepted before or after its name, and how it answers."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from protocol.errors import Cancelled


@dataclass
class Session:
    """`json`: one document on standard output, everything else on standard error."""

    chosen: Path | None = None
    json: bool = False

    @property
    def data_dir(self) -> Path:
        from node.config import default_data_dir

        return (self.chosen or default_data_dir()).expanduser().absolute()

    def call(self, method: str, params: dict[str, Any] | None = None, on_event: Callable[[dict[str, Any]], None] | None = None) -> Any:
        """Asks the running node of the data directory; Ctrl-C cancels the work there and becomes `Cancelled`."""
        from node.cli.owner_client import call

        try:
            return call(self.data_dir, method, params, on_event)
        except KeyboardInterrupt:
            raise Cancelled(f"{method} was stopped by Ctrl-C") from None

    def answer(self, document: Any, show: Callable[[], None]) -> None:
        """The document with --json, else whatever `show` prints."""
        if self.json:
            sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        else:
            show()


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--data-dir` and `--json` to a command and passes it the `Session` first."""

    @click.option("--data-dir", type=click.Path(path_type=Path), help="The node's directory. [default: MF_DATA_DIR, else the user's]")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on standard output.")
    @click.pass_context
    @functools.wraps(command)
    def wrapped(context: click.Context, /, data_dir: Path | None, as_json: bool, **options: Any) -> Any:
        session = context.ensure_object(Session)
        session.chosen = data_dir or session.chosen
        session.json = as_json or session.json
        return command(session, **options)

    return wrapped
