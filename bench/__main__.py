"""`python -m bench [NAME]...`: what is measured against others, each bench's figures as JSON, then one table of all.

Figures drift with the machine; ratios of one run count. What can't be run here (a program that isn't installed, no network to have it
from) is a line of the table and ends nothing else. Names are the modules of this folder. Without a name all run but those of LONG, which
take ten minutes or more each; `python -m bench all` has those too.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import sys
import traceback
from typing import Any

from bench.bars import Bar, table
from bench.environments import Missing

RUNS: dict[str, list[dict[str, Any]]] = {
    "library": [{}],
    "llama": [{}],
    "compression": [{}],
    "index_rebuild": [{}],
    "get_vs_nginx": [{"hidden": 1024}, {"hidden": 1024, "lost": 2}, {"hidden": 512}],
    "get_vs_peers": [{}],
    "publish_vs_nginx": [{}],
    "trickle": [{}],
    "memory": [{}],
    "gateway": [{}],
    "doors": [{}],
    "language_pipes": [{}],
    "engine": [{}],
    "compiled": [{}],
    "serving": [{}],
    "drafting": [{}],
    "pipeline": [{"precision": "bf16"}, {"precision": "int4"}],
    "stage_boundary": [{}],
    "stage_crowd": [{"count": 64}, {"count": 100, "new": 192}],
    "stage_loss": [{}],
    "stage_audit": [{}],
    "stage_choice": [{}],
}
"""The arguments of each run of a bench. A module has `run(**arguments)`, which gives what it found, and `bars(found)`."""
LONG = ("stage_crowd", "stage_loss", "stage_audit", "stage_choice")


def attempt(name: str, arguments: dict[str, Any]) -> list[Bar]:
    what = " ".join([name, *(f"{key} {value}" for key, value in arguments.items())])
    print(f"\n{what} ...", flush=True)
    try:
        module = importlib.import_module(f"bench.{name}")
        found = module.run(**arguments)
        print(json.dumps(found), flush=True)
        bars: list[Bar] = module.bars(found)
    except Missing as missing:
        return [Bar(what, "", f"not run: {missing}")]
    except Exception as error:  # boundary: the other benches go on, the table says it, the exit code too
        traceback.print_exc()
        return [Bar(what, "", f"failed: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}")]
    return bars


def main() -> int:
    names = sys.argv[1:] or [name for name in RUNS if name not in LONG]
    names = list(RUNS) if names == ["all"] else names
    if unknown := [name for name in names if name not in RUNS]:
        print(f"there is no bench {unknown[0]}: {', '.join(RUNS)}", file=sys.stderr)
        return 2
    bars = [bar for name in names for arguments in RUNS[name] for bar in attempt(name, arguments)]
    print(f"\n{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}\n")
    print(table(bars))
    return int(any(bar.measured.startswith("failed") for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
