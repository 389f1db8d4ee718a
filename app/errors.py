"""Every exception Nurture raises on purpose.

    NurtureError
    ├── SettingError            a setting is missing or wrong; names the variable
    ├── StartError              the engine cannot start; says what to do about it
    │   ├── HomeInUse           another copy runs on this home directory
    │   └── DatabaseNewer       the database was written by a newer version
    ├── InputError              something from outside is wrong; names the field, line or row
    │   ├── EventError          one item of the events API
    │   ├── DefinitionError     a campaign file; carries every problem with file, line and column
    │   ├── TemplateError       a mail template; carries its path and, where known, the line
    │   ├── Refused             a provider's webhook that cannot be believed; carries the status to answer
    │   ├── SurveyClosed        an answer came after the survey's last day
    │   └── TooOften            an answer was changed too often within an hour
    ├── NotFound                a thing named by the caller does not exist
    ├── RenderSkip              a message must not be sent as it would have a hole; carries the reason
    ├── SendError               a transport did not take a message; carries the phase and the class
    ├── CallError               a call of another system got no answer; carries the class
    ├── DnsAway                 no DNS server answers, which says nothing of the name that was asked for
    └── MailboxError            an IMAP server did not do what it was asked; says what it said

`InputError` is the caller's fault and becomes a 4xx; every other one is ours and becomes a 5xx, a parked occurrence or a stop at
start-up.
"""

from __future__ import annotations

from datetime import datetime


class NurtureError(Exception):
    """The root: catch it to catch everything Nurture raises on purpose."""


class SettingError(NurtureError):
    """A setting is missing or wrong. `variable` is the environment variable's name."""

    def __init__(self, variable: str, problem: str):
        super().__init__(f"{variable}: {problem}")
        self.variable = variable
        self.problem = problem


class StartError(NurtureError):
    """The engine cannot start. The message says what to do about it."""


class HomeInUse(StartError):
    """Another copy of Nurture runs on this home directory."""


class DatabaseNewer(StartError):
    """The database was migrated by a newer version than this one."""


class InputError(NurtureError):
    """Something from outside is wrong. `field` names the place (a JSON path, a line, a row), if there is one."""

    def __init__(self, problem: str, field: str | None = None):
        super().__init__(f"{field}: {problem}" if field else problem)
        self.problem = problem
        self.field = field


class EventError(InputError):
    """One item of the events API is wrong; its neighbours are kept."""


class DefinitionError(InputError):
    """A campaign folder is wrong. `problems` holds all of them, in file order (see `app.rules.definition.Problem`)."""

    def __init__(self, problems: list):
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class TemplateError(InputError):
    """A template is wrong. `path` is the file; `line` is 1-based and None where it is not known. `problems` holds everything found
    (see `app.flow.composing.marks.Problem`), the first of which the other fields repeat."""

    def __init__(self, problem: str, path: str, line: int | None = None, problems: tuple = ()):
        super().__init__(problem, f"{path}:{line}" if line else path)
        self.path = path
        self.line = line
        self.problems = problems


class Refused(InputError):
    """A provider's webhook cannot be believed, or not be read. `status` is what to answer: 401, 403 or 400 (W-01, W-06)."""

    def __init__(self, status: int, problem: str):
        super().__init__(problem)
        self.status = status


class SurveyClosed(InputError):
    """An answer came after the survey's last day. `at` is when it closed."""

    def __init__(self, at: datetime):
        super().__init__(f"the survey closed on {at:%Y-%m-%d}")
        self.at = at


class TooOften(InputError):
    """An answer was changed too often within an hour."""


class NotFound(NurtureError):
    """A thing named by the caller does not exist."""


class RenderSkip(NurtureError):
    """A message must not be sent as it would have a hole. `reason` is a ledger code, `evidence` says which value."""

    def __init__(self, reason: str, evidence: dict):
        super().__init__(f"{reason}: {evidence}")
        self.reason = reason
        self.evidence = evidence


class SendError(NurtureError):
    """A transport did not take a message.

    `outcome` is `temp` (try again later), `perm` (never) or `unknown` (it may have been taken); `phase` is where it happened
    (connect, mail, rcpt, data, body, dot); `code` and `text` are the reply, if there was one; `setting` says that it will go on so
    until somebody changes a setting (certificate, sign-in, address). See email-standards 2.1.
    """

    def __init__(self, outcome: str, phase: str, text: str, code: int | None = None, *, setting: bool = False):
        super().__init__(f"{phase}: {code or ''} {text}".strip())
        self.outcome = outcome
        self.phase = phase
        self.code = code
        self.text = text
        self.setting = setting


class CallError(NurtureError):
    """A call of another system got no answer.

    `outcome` is `refused` (it must not be made), `unsent` (nothing of it went out) or `unknown` (it may have been taken).
    """

    def __init__(self, outcome: str, problem: str):
        super().__init__(problem)
        self.outcome = outcome
        self.problem = problem


class DnsAway(NurtureError):
    """No DNS server answers: nothing is known of the name."""


class MailboxError(NurtureError):
    """An IMAP server could not be reached, or did not do what it was asked."""
