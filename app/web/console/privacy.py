"""Privacy pages: suppressions, erasures with their receipts, what retention took away; erasing and exporting one contact."""

from __future__ import annotations

import tempfile
from uuid import UUID

from flask import abort, g, redirect, render_template, request, send_file, url_for
from werkzeug import Response

from app.errors import InputError
from app.flow import erase, export, retain, suppressing
from app.flow.reading.paging import clean
from app.web.console import blueprint, known_book
from app.web.context import here, reading

STAFF = "staff in the console"


@blueprint.get("/privacy", endpoint="privacy")
def privacy_page() -> str:
    search = clean(request.args.get("search"))
    with reading() as conn:
        known_book(conn)
        return render_template(
            "console/privacy.html",
            search=search,
            page=suppressing.suppressions(conn, search=search, cursor=request.args.get("cursor"), limit=30),
            erasures=erase.receipts(conn, 50),
            retention=retain.state(conn, g.now),
        )


@blueprint.get("/privacy/erasures/<uuid:erasure_id>", endpoint="receipt")
def receipt_page(erasure_id: UUID) -> str:
    """A page to print; it names nobody."""
    with reading() as conn:
        known_book(conn)
        return render_template(
            "console/receipt.html", receipt=erase.receipt(conn, erasure_id), rules={r.table: r.what for r in erase.RULES}
        )


@blueprint.post("/privacy/erase", endpoint="erase")
def erase_contact() -> Response:
    """Erases a contact; its id is to be typed once more."""
    key = request.form.get("key", "")
    if request.form.get("again", "").strip() != key or not key:
        raise InputError("must be the contact's id, typed once more: nothing was erased", "again")
    with here().engine.begin() as conn:
        asked = erase.request(conn, "contact", key, STAFF, g.now)
    here().bells.tidy()
    return redirect(url_for("console.receipt", erasure_id=asked.id), 303)


@blueprint.get("/privacy/export", endpoint="export")
def export_contact() -> Response:
    """A contact's export, as a download; nothing of it stays here."""
    key = request.args.get("contact") or abort(404)
    file = tempfile.TemporaryFile()  # noqa: SIM115 — the response closes it when it has been sent
    with reading() as conn:
        export.write_zip(conn, "contact", key, g.now, file)
        name = erase.export_name(conn, "contact", key, g.now)
    file.seek(0)
    return send_file(file, mimetype="application/zip", as_attachment=True, download_name=name)
