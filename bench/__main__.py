"""`python -m bench`: what is measured against others, and a small report. Figures drift with the machine; ratios of one run count."""

from __future__ import annotations

import json
from typing import Any

from bench import get_vs_nginx


def report(found: dict[str, Any]) -> str:
    """One bench as lines for people."""
    seconds, cpu = found["seconds"], found["cpu_seconds"]
    lines = [
        f"get of {found['mib']} MiB by a seventh node, k 4 of n 6, holders lost: {found['holders_lost']} (medians of {found['rounds']})",
        f"  nginx -> curl {seconds['curl']:.3f} s, node {seconds['fetch']:.3f} s, whole command {seconds['command']:.3f} s",
        f"  ratio {found['ratio']:.2f}, with the command's start {found['ratio_with_command_start']:.2f}",
        f"  published in {found['publish_seconds']} s",
        "  CPU seconds: " + ", ".join(f"{kind} {spent:.2f}" for kind, spent in cpu.items()) + f", together {sum(cpu.values()):.2f}",
    ]
    return "\n".join(lines)


def main() -> None:
    for lost in (0, 2):
        found = get_vs_nginx.run(lost=lost)
        print(report(found))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
