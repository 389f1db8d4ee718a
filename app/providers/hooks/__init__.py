"""What mail providers tell us: how each proves that it is the one that calls, and what its events mean (email-standards 3.3).

A provider is a module with three functions, which look at nothing but what they are given and never trust it:

    check_secret(secret) → the secret that the operator was shown, if it can be one
    verify(call, secrets, options, certificates) → the events of the call, each with its key; raises Refused
    read(raw, received) → what one event says, as Reports; none for what is unknown
"""

from types import ModuleType

from app.providers.hooks import mailgun, postmark, sendgrid, ses

NAMES = {"ses": "Amazon SES", "sendgrid": "SendGrid", "postmark": "Postmark", "mailgun": "Mailgun"}
PROVIDERS: dict[str, ModuleType] = {"ses": ses, "sendgrid": sendgrid, "postmark": postmark, "mailgun": mailgun}
