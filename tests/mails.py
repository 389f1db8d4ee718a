"""The shipped mails, rendered for a sample contact: what `tests/approved/` holds.

    .venv/bin/python tests/mails.py

writes the approved files anew. Look at the difference before committing it: it is what customers will see.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from app.flow.check import read  # noqa: E402
from app.flow.compose import Addresses, Composer, Mail  # noqa: E402

APPROVED = ROOT / "tests" / "approved"
WHY = "You get this email because you use Acorn Reports (sample) at Birch & Sons."
VALUES = {
    "contact": {"first_name": "Mara", "roles": ["admin"]},
    "account": {"name": "Birch & Sons", "owner": {"name": "Jonas Lind"}},
    "response": {"score": 9, "comment": "The import failed twice, and nobody answered for a week."},
    "now": datetime(2026, 3, 2, 9, 0, tzinfo=UTC),
}


def addresses(**changes) -> Addresses:
    """The addresses of one message, short enough to be read in a test."""
    base = "https://n.example"
    fields = {
        "unsubscribe": f"{base}/u/T",
        "preferences": f"{base}/p/T",
        "view": f"{base}/v/T",
        "pixel": f"{base}/o/T.gif",
        "clicks": lambda number: f"{base}/c/{number}",
        "score": lambda score: f"{base}/s/T/{score}",
        "privacy": f"{base}/p/T#privacy",
    }
    return Addresses(**{**fields, **changes})


def shipped() -> dict[str, Mail]:
    """Every mail of `campaigns/`, by campaign and step."""
    campaigns = read(ROOT / "campaigns")
    brand = campaigns.lifecycle.brand.model_dump()
    composer = Composer()
    return {
        f"{folder.key.replace('/', '.')}.{one.step}": composer.render(one.path, one.compiled, VALUES, addresses(), brand, WHY)
        for folder in campaigns.folders
        for one in folder.templates
    }


def files(mail: Mail) -> dict[str, str]:
    """What is approved of a mail: its HTML, and its text with the subject above and the destinations of its links below."""
    links = "\n".join(f"[{number}] {url}" for number, url in enumerate(mail.links))
    return {"html": mail.html + "\n", "txt": f"Subject: {mail.subject}\n\n{mail.text}\n{links}\n"}


if __name__ == "__main__":
    APPROVED.mkdir(exist_ok=True)
    for old in APPROVED.iterdir():
        old.unlink()
    for name, mail in shipped().items():
        for kind, text in files(mail).items():
            (APPROVED / f"{name}.{kind}").write_text(text, "utf-8", newline="\n")
    print(f"approved {len(list(APPROVED.iterdir()))} files in {APPROVED}")
