"""The modes of a campaign, and which may follow which (DESIGN.md 6). Pure."""

from __future__ import annotations

from app.errors import InputError

# draft → shadow → live → paused → archived, forwards over any of them; back from paused to live, and from archived to paused, so that
# nothing starts to send by being unarchived. Only what was live may be paused.
FOLLOWS: dict[str, tuple[str, ...]] = {
    "draft": ("shadow", "live", "archived"),
    "shadow": ("live", "draft", "archived"),
    "live": ("paused", "archived"),
    "paused": ("live", "archived"),
    "archived": ("paused",),
}
ENTERED = ("live", "shadow")  # where new enrollments begin
OVERDUE = ("send", "skip", "exit")  # what may become of what fell due during a pause


def check_change(before: str, after: str) -> None:
    """Raises InputError with the modes that may follow, unless `after` is one of them."""
    if after == before:
        raise InputError(f"is {before} already", "mode")
    if after not in FOLLOWS[before]:
        raise InputError(f"{before} can become {' or '.join(FOLLOWS[before])}, not {after}", "mode")
