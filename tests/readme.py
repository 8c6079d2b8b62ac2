"""What the README says that can be held against what is."""

from __future__ import annotations

import json
import re
from pathlib import Path

_README = Path(__file__).parents[1] / "README.md"
_NODE = re.compile(r'\w+\["?([\w ]+?)(?:<br>\w+)?"?\]')


def drawn(executor: str) -> set[str]:
    """Return the resources that its graph shows of an executor's stack, as `PACKAGE TYPE`; our own without package."""
    text = _README.read_text(encoding="utf-8")
    part = text.partition(f"  subgraph {executor}\n")[2].partition("  end\n")[0]
    return set(_NODE.findall(part))


def declared(export: str) -> set[str]:
    """Return the same of a stack, as `pulumi stack export` shows it: without providers and components."""
    types = [each["type"] for each in json.loads(export)["deployment"]["resources"] if each["custom"]]
    names = [each.split(":") for each in types if not each.startswith("pulumi:")]
    return {name if package == "coding-agent" else f"{package} {name}" for package, _, name in names}
