"""The pages of mail that came in: what it was taken for, and the mail as text. Nothing of it is ever shown as HTML (I-06)."""

from __future__ import annotations

from flask import redirect, render_template, request, url_for
from werkzeug import Response

from app.flow.inbound import retry
from app.flow.inbound.sort import KINDS
from app.flow.reading import inbound
from app.flow.reading.paging import clean
from app.web.console import blueprint
from app.web.context import here, reading

# Whatever a browser may take the bytes for, it must not run them.
RAW_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"


@blueprint.get("/inbound", endpoint="inbound")
def inbound_page() -> str:
    wanted = {name: clean(request.args.get(name)) for name in ("kind", "state", "message")}
    with reading() as conn:
        return render_template(
            "console/inbound.html",
            page=inbound.mails(conn, **wanted, cursor=request.args.get("cursor")),
            wanted=wanted,
            filtered=any(wanted.values()),
            kinds=KINDS,
            states=(("aside", "Put aside"), ("waiting", "Waiting"), ("failed", "Failed"), ("done", "Read")),
        )


@blueprint.get("/inbound/<bigint:mail_id>", endpoint="inbound_mail")
def mail_page(mail_id: int) -> str:
    with reading() as conn:
        return render_template("console/inbound_mail.html", mail=inbound.mail(conn, mail_id))


@blueprint.get("/inbound/<bigint:mail_id>/raw", endpoint="inbound_raw")
def raw_mail(mail_id: int) -> Response:
    """The bytes as they came, to be saved as a text file."""
    with reading() as conn:
        data = inbound.raw(conn, mail_id)
    response = Response(data, mimetype="text/plain")
    response.headers["Content-Type"] = "text/plain; charset=utf-8"
    response.headers["Content-Disposition"] = f'attachment; filename="inbound-{mail_id}.txt"'
    response.headers["Content-Security-Policy"] = RAW_POLICY
    return response


@blueprint.post("/inbound/<bigint:mail_id>", endpoint="retry_inbound")
def read_again(mail_id: int) -> Response:
    """Has the mail read again; what was heard of it already counts once."""
    with here().engine.begin() as conn:
        retry(conn, mail_id)
    here().bells.inbound()
    return redirect(url_for("console.inbound_mail", mail_id=mail_id), 303)
