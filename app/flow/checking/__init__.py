"""The parts of checking, used by `flow/check.py` alone: files read and placed, models explained, names held against each other."""
