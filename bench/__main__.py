"""`python -m bench`: what is measured against others, and a small report. Figures drift with the machine; ratios of one run count."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

from bench import get_vs_nginx, library


def report(found: dict[str, Any]) -> str:
    """One bench as lines for people."""
    seconds, cpu = found["seconds"], found["cpu_seconds"]
    lines = [
        f"get of {found['mib']} MiB (hidden {found['hidden']}) by a seventh node, k 4 of n 6,"
        f" holders lost: {found['holders_lost']} (medians of {found['rounds']})",
        f"  nginx -> curl {seconds['curl']:.3f} s, node {seconds['fetch']:.3f} s, whole command {seconds['command']:.3f} s",
        f"  ratio {found['ratio']:.2f}, with the command's start {found['ratio_with_command_start']:.2f}",
        f"  published in {found['publish_seconds']} s",
        "  CPU seconds: " + ", ".join(f"{kind} {spent:.2f}" for kind, spent in cpu.items()) + f", together {sum(cpu.values()):.2f}",
    ]
    return "\n".join(lines)


def library_report(found: dict[str, Any]) -> str:
    lines = [f"parity (10, 15) of 256 KiB pieces: {found['parity']['times']} times zfec"]
    for place, measured in found["files"].items():
        ratios = ", ".join(f"{name.replace('_', ' ')} {ratio:.2f}" for name, ratio in measured["ratio_to_cp"].items())
        lines.append(f"files of {found['mib']} MiB in {place}, ratio to cp: {ratios}")
    return "\n".join(lines)


def show(text: str, found: dict[str, Any]) -> None:
    print(text)
    print(json.dumps(found), flush=True)


def main() -> None:
    print(f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}", flush=True)
    found = library.run()
    show(library_report(found), found)
    for hidden, lost in ((1024, 0), (1024, 2), (512, 0)):
        found = get_vs_nginx.run(lost=lost, hidden=hidden)
        show(report(found), found)


if __name__ == "__main__":
    main()
