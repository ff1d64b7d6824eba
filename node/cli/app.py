"""`mf-node`: the commands, and the one place where an error becomes a sentence, a JSON document and an exit code.

Commands live in modules that import click alone at the top; aiohttp, libp2p, torch and msgspec load inside them,
so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from node.cli.account_commands import account, audit, callers, key
from node.cli.chat import chat
from node.cli.doctor import doctor
from node.cli.model_commands import explain, fetch, forget, models, pin, publish
from node.cli.run import demo, run
from node.cli.session import common
from node.cli.space_commands import block, drain, rebalance
from node.cli.swarm_commands import holdings, join, status, stop, ticket, trust
from node.cli.tables import plain
from node.version import VERSION
from protocol.errors import BadInput, Cancelled, MfError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="mf-node")
@common
def cli(_: object) -> None:
    """Store, find and run open models in a swarm of peers.

    Start a node with `mf-node run`; the other commands reach the running node of the same data directory.
    """


_KEEPING = (holdings, forget, pin, block, rebalance, drain)
_ACCOUNTS = (key, account, callers, audit)
for _command in (run, publish, models, fetch, chat, ticket, join, trust, *_KEEPING, *_ACCOUNTS, status, explain, stop, doctor, demo):
    cli.add_command(_command)


def run_command_line(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code (docs/CLI.md), the error told already."""
    as_json = "--json" in arguments
    try:
        code = cli.main(list(arguments), prog_name="mf-node", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return BadInput.exit_code
    except click.ClickException as error:
        return _tell(_usage(error), as_json)
    except (click.Abort, KeyboardInterrupt):
        return _tell(Cancelled("stopped by Ctrl-C"), as_json)
    except BrokenPipeError:
        sys.stderr.close()
        return Cancelled.exit_code
    except MfError as error:
        return _tell(error, as_json)
    except Exception as error:  # boundary: a fault of the program, told without a traceback unless asked for
        return _tell(_fault(error), as_json)


def _usage(error: click.ClickException) -> BadInput:
    context = getattr(error, "ctx", None)
    return BadInput(error.format_message(), hint=f"see `{context.command_path} --help`" if context else None)


def _fault(error: Exception) -> MfError:
    import logging

    logging.getLogger(__name__).debug("unexpected", exc_info=error)
    return MfError(f"this is a fault of mf-node: {type(error).__name__}: {error}", hint="please report it with what you did")


def _tell(error: MfError, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"error": error.to_wire()}, ensure_ascii=False, default=str))
        return error.exit_code
    click.secho(f"mf-node: {plain(error.message)}", fg="red", err=True)
    candidates = error.details.get("candidates")
    if isinstance(candidates, list) and candidates and str(candidates[0]) not in (error.hint or ""):
        click.echo(f"  near: {', '.join(str(name) for name in candidates[:8])}", err=True)
    refusals = error.details.get("refusals")
    if isinstance(refusals, dict):
        for peer, reason in list(refusals.items())[:16]:
            click.echo(plain(f"  {peer}: {reason}"), err=True)
    if error.hint:
        click.echo(f"  {plain(error.hint)}", err=True)
    return error.exit_code
