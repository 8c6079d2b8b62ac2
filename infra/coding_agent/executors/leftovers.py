"""What removes, with a run's target, what was made for the run and is in no stack: a killed engine left it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import pulumi

if TYPE_CHECKING:
    from coding_agent.executors.declared import Wanted


class Leftovers(pulumi.CustomResource):
    """Removed, it lets the executor's `sweep` remove what is left of the run."""

    def __init__(self, name: str, wanted: Wanted, options: pulumi.ResourceOptions) -> None:
        inputs = {"run_id": wanted.run_id, "executor": asdict(wanted.spec)}
        super().__init__("coding-agent:index:Leftovers", name, inputs, options)
