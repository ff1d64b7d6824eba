"""`doctor`: what works on this machine, what doesn't, and why. Each check is a function; none may fail the others."""

from __future__ import annotations

import sys
from typing import Any

import click

from node.cli.session import Session, common
from protocol.errors import Unavailable

_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


@click.command()
@common
def doctor(session: Session) -> int:
    """Check this machine: packages, acceleration, sandbox, ports, disk, clock, memory."""
    from node.cli.doctor_checks import all_checks

    checks = all_checks(session.data_dir)
    document = {"ok": all(check["state"] != "fail" for check in checks), "checks": checks}
    session.answer(document, lambda: _show(checks))
    sys.stdout.flush()
    return 0 if document["ok"] else Unavailable.exit_code


def _show(checks: list[dict[str, Any]]) -> None:
    for check in checks:
        mark, colour = _MARKS[check["state"]]
        click.secho(f"{mark} ", fg=colour, nl=False)
        click.echo(f"{check['name']:<14} {check['detail']}")
        if check["hint"]:
            click.echo(f"  {'':<14} {check['hint']}")
