"""Run the benchmarks: a table on the screen, every raw sample as JSON in benchmarks/results.

python -m benchmarks [--times N] [NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import cloud, containers, looking, queue, remote, supervisor, updates
from benchmarks.measure import Report
from benchmarks.world import World, world

BENCHMARKS: dict[str, Callable[[World, int], Report | list[Report]]] = {
    "first-up": updates.first_up,
    "repeated-up": updates.repeated_up,
    "engine-calls": updates.engine_calls,
    "help": looking.show_help,
    "status": looking.status,
    "follow": looking.follow,
    "supervisor": supervisor.cost,
    "container-up": containers.first_up,
    "container-connection": containers.connection,
    "container-logs": containers.log_latency,
    "container-program": containers.program,
    "container-many": containers.at_once,
    "ssh-up": remote.first_up,
    "ssh-from-afar": remote.from_afar,
    "hetzner-first-call": cloud.first_call,
    "queue": queue.waiting,
    "queue-first-request": queue.first_request,
    "queue-memory": queue.memory,
    "queue-looking": queue.looking,
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run those named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--times", type=int, default=10, help="samples of each (default 10)")
    given = parser.parse_args()
    console = Console()
    reports: list[Report] = []
    with world() as machine:
        for name in given.names or BENCHMARKS:
            console.print(f"measuring {name} ...")
            made = BENCHMARKS[name](machine, given.times)
            for report in made if isinstance(made, list) else [made]:
                reports.append(report)
                _show(console, report)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y%m%dT%H%M%S')}.json"
    machine_facts = {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    file.write_text(json.dumps({"machine": machine_facts, "reports": [r.as_json() for r in reports]}, indent=1))
    console.print(f"raw samples: {file}")


def _show(console: Console, report: Report) -> None:
    table = Table("", "median (quartiles)", "ours to it", "samples", title=report.title, title_justify="left")
    for row in report.rows():
        table.add_row(*row)
    console.print(table)
    for line in (*report.verdicts(), *report.notes):
        console.print(f"  {line}")


if __name__ == "__main__":
    main()
