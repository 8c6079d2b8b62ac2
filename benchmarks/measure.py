"""Take samples side by side and say what they come to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Series:
    """Samples of one thing, in `unit`."""

    name: str
    unit: str = "s"
    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Return the median of the samples."""
        return statistics.median(self.samples)

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Add the seconds that the block takes."""
        begun = time.perf_counter()
        yield
        self.samples.append(time.perf_counter() - begun)


@dataclass(frozen=True)
class Goal:
    """A number to stay under: of the first series' median, or of its ratio to that of `against`."""

    limit: float
    against: str | None = None


@dataclass(frozen=True)
class Report:
    """What one benchmark found; the first series is ours."""

    title: str
    series: Sequence[Series]
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = ()

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return name, median with its quartiles, ratio of ours to it, and how many samples."""
        ours = self.series[0]
        rows = []
        for series in self.series:
            low, _, high = (
                statistics.quantiles(series.samples, n=4) if len(series.samples) > 1 else (series.median,) * 3
            )
            same_unit = series is not ours and series.unit == ours.unit and series.median
            ratio = f"{ours.median / series.median:.2f}x" if same_unit else ""
            shown = f"{series.median:.4g} {series.unit}  ({low:.4g} to {high:.4g})"
            rows.append((series.name, shown, ratio, str(len(series.samples))))
        return rows

    def verdicts(self) -> list[str]:
        """Return how each goal stands."""
        ours = self.series[0]
        said = []
        for goal in self.goals:
            other = next((s for s in self.series if s.name == goal.against), None)
            value = ours.median / other.median if other else ours.median
            unit = "x" if other else f" {ours.unit}"
            against = f" of {other.name}" if other else ""
            met = "met" if value <= goal.limit else "NOT met"
            said.append(f"goal {goal.limit:g}{unit}{against}: {met} ({value:.3g}{unit})")
        return said

    def as_json(self) -> Mapping[str, object]:
        """Return everything, with each raw sample."""
        return {
            "title": self.title,
            "series": [{"name": s.name, "unit": s.unit, "median": s.median, "samples": s.samples} for s in self.series],
            "goals": self.verdicts(),
            "notes": list(self.notes),
        }


def side_by_side(times: int, *steps: Callable[[], None]) -> None:
    """Run the steps in turn, `times` times, so that what else the machine does hits all of them alike."""
    for _ in range(times):
        for step in steps:
            step()
