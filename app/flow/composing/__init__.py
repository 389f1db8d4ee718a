"""The parts of composing, used by `flow/compose.py` alone: templates, MJML, the text part, the bytes."""
