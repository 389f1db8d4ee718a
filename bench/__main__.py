"""`python -m bench [ROW…] [--json]`: measures the rows named, or all, and prints the table of DESIGN.md section 13.

A module of this package takes part by a `ROWS` dictionary: the row's letter → a function without arguments that measures it and
returns its `Line`s. The exit code is 0 when every row was measured, whatever the verdicts: the machine may be busy.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from collections.abc import Callable

import bench
from app.work import spare_collector
from bench.table import Line, render


def rows() -> dict[str, Callable[[], list[Line]]]:
    """Every row that a module of this package measures, by letter."""
    found: dict[str, Callable[[], list[Line]]] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(bench.__path__) if info.name != "__main__"):
        found |= getattr(importlib.import_module(f"bench.{module}"), "ROWS", {})
    return dict(sorted(found.items()))


def main(arguments: list[str] | None = None) -> int:
    known = rows()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(known)}; all when none is named")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    if unknown := [row for row in options.rows if row not in known]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(known)}")
    spare_collector()  # measured is what workers run, as they run it
    lines: list[Line] = []
    for row in options.rows or known:
        print(f"measuring {row} …", file=sys.stderr, flush=True)
        lines += known[row]()
    print(json.dumps([line.as_json() for line in lines], indent=2) if options.json else render(lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
