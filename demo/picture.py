"""Draw docs/up.svg, the README's picture, from what `make demo` really prints."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 118


def main() -> None:
    """Run the demo and draw the part from `up` to its summary."""
    said = subprocess.run(["make", "demo"], cwd=ROOT, capture_output=True, text=True, timeout=1200, check=True).stdout
    shown = said[said.index("$ coding-agent validate") : said.index("$ coding-agent status")].strip()
    console = Console(record=True, width=WIDTH, file=Path("/dev/null").open("w"))  # noqa: SIM115 - ends with us
    for line in shown.replace(str(Path.home()), "~").splitlines():
        style = "bold" if line.startswith("$ ") else "green" if "succeeded" in line else ""
        console.print(Text(line, style=style), overflow="ellipsis", no_wrap=True)
    picture = ROOT / "docs" / "up.svg"
    picture.parent.mkdir(exist_ok=True)
    # Without the fonts that the template fetches from elsewhere: a reader's own will do.
    template = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    console.save_svg(str(picture), title="a task, from YAML to a branch", code_format=template)


if __name__ == "__main__":
    main()
