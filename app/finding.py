"""What `nurture doctor` has to say of one thing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: what, whether it is well, and what was seen (with what to do when it is not)."""

    what: str
    good: bool
    seen: str

    def as_dict(self) -> dict:
        return {"what": self.what, "good": self.good, "seen": self.seen}

    def __str__(self) -> str:
        return f"{'ok     ' if self.good else 'PROBLEM'}  {self.what:<18}{self.seen}"
