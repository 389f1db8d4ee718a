"""The workers for production: `python worker.py` runs all three roles, `python worker.py advance|deliver|clock` one of them."""

from __future__ import annotations

import sys

from app.work import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
