# Everything a newcomer needs: `make run`. Needs Python 3.11 or newer (PYTHON=/path/to/python chooses one) and nothing else.
#
# Only relative paths, quoted: the folder's own path may hold spaces.

PYTHON ?=
ARGS ?=

.PHONY: run setup test equal scanners chaos lint bench

run: setup
	@exec .venv/bin/nurture up --sample $(ARGS)

setup:
	@PYTHON='$(PYTHON)' sh bin/setup

# Tests that start and kill real processes get the machine to themselves.
test: setup
	@.venv/bin/python -m pytest -n 2 --dist loadfile -m "not processes" $(ARGS)
	@.venv/bin/python -m pytest -m processes $(ARGS)

# The long proof that a simulation equals a live run: an hour or so. The short one is among the tests.
equal: setup
	@.venv/bin/python -m tests.twins $(ARGS)

# The long proof that mail scanners change nothing: ten minutes or so. The short one is among the tests.
scanners: setup
	@.venv/bin/python -m tests.scanners $(ARGS)

# The long kill suite: 20,000 messages and 200 kills, a quarter of an hour or so. The short one is among the tests.
chaos: setup
	@.venv/bin/python -m tests.chaos $(ARGS)

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

bench: setup
	@.venv/bin/python -m bench $(ARGS)
