"""What a benchmark finds, and how it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

HEADINGS = ("row", "what", "ours", "reference", "ratio", "target", "verdict")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    ours, reference   in `unit` (events/s, ms, MB, …); reference is None for a target that stands alone
    target            of the ratio when there is a reference, else of ours
    at_most           whether the target is a limit from above
    note              what a reader must know about the measurement, such as the spread
    """

    row: str
    what: str
    ours: float
    unit: str
    target: float
    reference: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return None if self.reference is None else self.ours / self.reference

    @property
    def met(self) -> bool:
        judged = self.ours if self.ratio is None else self.ratio
        return judged <= self.target if self.at_most else judged >= self.target

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio, "met": self.met}

    def cells(self) -> tuple[str, ...]:
        sign = "≤" if self.at_most else "≥"
        target = f"{sign} {_number(self.target)} {self.unit}" if self.ratio is None else f"{sign} {self.target:g} ×"
        reference = "" if self.reference is None else f"{_number(self.reference)} {self.unit}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return self.row, self.what, f"{_number(self.ours)} {self.unit}", reference, ratio, target, "met" if self.met else "MISSED"


def render(lines: Sequence[Line]) -> str:
    """The table as text, with the notes below it."""
    cells = [HEADINGS, *(line.cells() for line in lines)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    rows.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*rows, *(f"{line.row}: {line.note}" for line in lines if line.note)])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
