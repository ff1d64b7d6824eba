"""Swarms in virtual time: `python -m bench.swarm_simulation [quick] [--plots]`.

Prints a table, one line a run; with `--plots` writes PNGs to docs/figures (wants matplotlib: `.venv/bin/pip install matplotlib`). The
policies are those that ship, the swarm is tests/simulator. `quick` makes all runs small.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

from erasure.forecast import Churn as Leaving
from erasure.forecast import repair_suffices
from tests.simulator.results import Result, table
from tests.simulator.scenario import DAY, HOUR, Churn, Scenario
from tests.simulator.swarm import simulate

FIGURES = Path(__file__).parent.parent / "docs" / "figures"


def scenarios(quick: bool) -> dict[str, Scenario]:
    """The runs by name."""
    small = 4 if quick else 1
    cut = ((6 * HOUR / small, 600.0, 0.5),)
    day = 24.0 / small
    habits = Churn(leave=0.005, reboots=1, sessions=0.2, nightly=0.3)
    groups = 28 // small
    return {
        "10 %/h leave": Scenario(groups=groups, hours=day, reads=250.0, churn=Churn(leave=0.1, reboots=1)),
        "10 %/h, reboots, a cut": Scenario(groups=groups, hours=day, reads=250.0, churn=Churn(leave=0.1, reboots=2, cuts=cut)),
        "30 %/h": Scenario(groups=groups, hours=day, reads=250.0, churn=Churn(leave=0.3, reboots=1)),
        "30 %/h, too little bandwidth": Scenario(groups=groups, hours=8.0, reads=250.0, cap=1.5e4, churn=Churn(leave=0.3, reboots=1)),
        "sessions and nights": Scenario(nodes=400 // small, groups=40 // small, hours=2 * day, reads=250.0, churn=habits),
        "an hour of many": Scenario(
            nodes=10_000 // small,
            groups=2_000 // small,
            hours=1.0,
            reads=10_000.0,
            churn=Churn(leave=0.3, reboots=2, sessions=0.2, nightly=0.2, subnets_lost=(1800.0,), cuts=((1200.0, 600.0, 0.3),)),
        ),
    }


def words(scenario: Scenario) -> str:
    """What the formula says of the scenario's bandwidth."""
    if not scenario.churn.leave:
        return "nobody leaves for good"
    k, n = scenario.code()
    leaving = Leaving(-math.log(1 - scenario.churn.leave) / HOUR, scenario.nodes, scenario.cap)
    shard_bytes = -(-scenario.group_bytes // k)
    verdict = repair_suffices(k, n, shard_bytes, scenario.groups, leaving, min(DAY, scenario.hours * HOUR))
    return ("suffices: " if verdict.enough else "does not suffice: ") + verdict.words


def plot(runs: dict[str, Result], path: Path) -> None:
    """What each group can still lose, and the bytes repair took beside the least possible, over time."""
    import matplotlib  # type: ignore[import-not-found]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found]

    figure, rows = pyplot.subplots(len(runs), 2, figsize=(9, 2.2 * len(runs)), squeeze=False)
    for (name, result), (left, right) in zip(runs.items(), rows, strict=True):
        hours = [sample.hours for sample in result.samples]
        left.plot(hours, [sample.mean_spare for sample in result.samples], label="mean", linewidth=1)
        left.plot(hours, [sample.least_spare for sample in result.samples], label="weakest group", linewidth=1)
        left.axhline(0, color="black", linewidth=0.5)
        left.set_title(f"{name}: shards present beyond k", fontsize=8)
        right.plot(hours, [sample.repair_bytes / 1e9 for sample in result.samples], label="repair", linewidth=1)
        right.plot(hours, [sample.least_bytes / 1e9 for sample in result.samples], label="least possible", linewidth=1)
        right.set_title("GB moved", fontsize=8)
        for axis in (left, right):
            axis.tick_params(labelsize=7)
            axis.legend(fontsize=7)
            axis.set_xlabel("hours", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


def main() -> None:
    found: dict[str, Result] = {}
    for name, scenario in scenarios("quick" in sys.argv[1:]).items():
        began = time.process_time()
        found[name] = simulate(scenario)
        took = time.process_time() - began
        counts = f"{found[name].events} events, {found[name].plans} rounds"
        print(f"{name}: {took:.1f} s of CPU, {counts}; bandwidth {words(scenario)}", flush=True)
    print("\n" + table(list(found.items())))
    if "--plots" in sys.argv[1:]:
        FIGURES.mkdir(parents=True, exist_ok=True)
        plot({name: result for name, result in found.items() if name != "an hour of many"}, FIGURES / "swarm_simulation.png")


if __name__ == "__main__":
    main()
