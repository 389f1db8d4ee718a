"""From a template and the values of one contact to a mail.

MJML is compiled once per version, with merge tags kept; then Jinja renders per recipient (DESIGN section 7). `compile_mail` is for
publishing, `Composer.render` for sending, `assemble` makes the bytes. Nothing here reads a clock, a database or the network.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import RenderSkip, TemplateError
from app.flow.composing import mjml
from app.flow.composing.filters import destination, one_line, plain
from app.flow.composing.marks import Problem
from app.flow.composing.plaintext import text_of, tidy
from app.flow.composing.templates import Path, Program, check
from app.flow.mime import assemble

__all__ = ["SCALES", "Addresses", "Compiled", "Composer", "Link", "Mail", "assemble", "compile_mail", "locales", "nowhere"]

HTML_LIMIT = 100 * 1024  # Gmail cuts a little above (M-13)
SUBJECT_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Scale:
    """A survey's scores, and the words at its ends."""

    low: int
    high: int
    least: str
    most: str


SCALES: Mapping[str, Scale] = {
    "nps": Scale(0, 10, "Not at all likely", "Extremely likely"),
    "csat": Scale(1, 5, "Very dissatisfied", "Very satisfied"),
    "ces": Scale(1, 7, "Very difficult", "Very easy"),
}


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a template. `url` is a Jinja source (plain text, not escaped); `track` says that it goes through `/c/`."""

    url: str
    label: str
    track: bool


@dataclass(frozen=True, slots=True)
class Compiled:
    """A template as Jinja sources. `links` are the tracked ones, `{{ mail.link[n] }}` in the sources; `reads` the dotted paths of
    facts it needs (never `mail.*` and `brand.*`)."""

    subject: str
    html: str
    text: str
    links: tuple[Link, ...]
    reads: frozenset[str]


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the links of one message lead. `pixel` is None where opens must not be tracked, `clicks` and `honeypot` where clicks must
    not; `privacy` is where tracking is refused, None where there is none (P-08)."""

    unsubscribe: str | None
    preferences: str
    view: str
    pixel: str | None
    clicks: Callable[[int], str] | None
    score: Callable[[int], str] | None = None
    privacy: str | None = None
    honeypot: str | None = None


def nowhere(base_url: str) -> Addresses:
    """Links for a mail that is written only to see whether it can be: they have the form of true ones, and no token is valid."""
    place = f"{base_url}/{{}}/sample"
    return Addresses(
        unsubscribe=place.format("u"),
        preferences=place.format("p"),
        view=place.format("v"),
        pixel=None,
        clicks=None,
        score=lambda score: f"{place.format('s')}?score={score}",
    )


def locales(locale: str | None) -> Iterator[str]:
    """The languages in which to look for a template, best first: de-AT, de, the default."""
    if locale:
        name = locale.replace("_", "-")
        yield name
        yield name.lower()
        yield name.split("-")[0].lower()
    yield ""


@dataclass(frozen=True, slots=True)
class Mail:
    """A rendered mail. `links` are the destinations by index; "" where this rendering did not use a link."""

    subject: str
    html: str
    text: str
    links: tuple[str, ...]


def compile_mail(
    source: str, subject: str, *, path: str, blocks: Mapping[str, str], survey: str | None = None, question: str | None = None
) -> Compiled:
    """Checks and compiles one template: `source` is MJML, sections only or a whole `<mjml>`; `blocks` are the files of `brand/`.

    `survey` (nps, csat or ces) and `question` come from a survey step, whose score buttons are appended if the template places none.
    Raises TemplateError for the first problem, with all of them in its `problems`; never compiles or evaluates what the checks have
    not passed, reads no file and fetches nothing. (X-02, X-11 to X-17, M-13, M-15, P-02, T-14.)
    """
    problems = _checked_words(subject, question, path)
    if survey is not None and (survey not in SCALES or not question):
        problems.append(Problem(path, None, f"a survey has a question and is one of {', '.join(SCALES)}"))
        survey = None
    asked = mjml.Survey(survey, question) if survey and question else None
    document, found = mjml.build(source, path, blocks, asked)
    if problems or found or document is None:
        raise _error([*problems, *found])
    compiled = _with_parts(document, subject)
    problems = _checked_result(compiled, path)
    if problems:
        raise _error(problems)
    return compiled


def _with_parts(document: mjml.Document, subject: str) -> Compiled:
    """The sources of both parts: links numbered in the order in which they stand in the HTML."""
    marks = document.marks
    text = text_of(document.html, marks)
    links: list[Link] = []
    for number in dict.fromkeys(int(one) for one in marks.pattern.findall(document.html)):
        mark = marks.all[number]
        if mark.kind != "href" or not mark.track:
            continue
        label = marks.restore(text.labels.get(number, ""), "text")
        links.append(Link(marks.restore(mark.text, "text"), label, True))
        mark.html = mark.text = f"{{{{ mail.link[{len(links) - 1}] }}}}"
    html = marks.restore(document.html, "html")
    body = marks.restore(text.text, "text")
    reads: set[str] = set()
    for one in (html, body, subject, *(link.url for link in links)):
        reads.update(_dotted(read) for read in check(one).reads if read[0] not in ("mail", "brand"))
    return Compiled(subject, html, body, tuple(links), frozenset(reads))


def _dotted(path: Path) -> str:
    words: list[str] = []
    for part in path:
        if not isinstance(part, str):
            break
        words.append(part)
    return ".".join(words)


def _checked_words(subject: str, question: str | None, path: str) -> list[Problem]:
    problems = []
    for name, text in (("subject", subject), ("question", question or "")):
        problems += [Problem(path, None, f"{name}: {flaw.problem}", None, flaw.fix) for flaw in check(text).flaws]
    if not subject.strip():
        problems.append(Problem(path, None, "the subject is empty"))
    return problems


def _checked_result(compiled: Compiled, path: str) -> list[Problem]:
    """What only the whole mail can show."""
    problems = []
    checked = check(compiled.html)
    for text in (compiled.text, *(link.url for link in compiled.links)):
        checked_part = check(text)
        problems += [Problem(path, None, flaw.problem) for flaw in checked_part.flaws]
    problems += [Problem(path, flaw.line, flaw.problem) for flaw in checked.flaws]
    if len(compiled.html.encode()) > HTML_LIMIT:
        problems.append(Problem(path, None, f"the mail is larger than {HTML_LIMIT // 1024} KB, where mail programs cut it off"))
    if ("mail", "unsubscribe_url") not in checked.reads or not re.search(r'href="\{\{-?\s*mail\.unsubscribe_url', compiled.html):
        problems.append(Problem(path, None, 'the unsubscribe link is missing: <a href="{{ mail.unsubscribe_url }}">'))
    if ("brand", "postal_address") not in checked.reads:
        problems.append(Problem(path, None, "the postal address is missing: {{ brand.postal_address }}"))
    if ("brand", "name") not in checked.reads and ("mail", "why") not in checked.reads:
        problems.append(Problem(path, None, "nothing says who sends the mail: {{ brand.name }} or {{ mail.why }}"))
    return problems


def _error(problems: Sequence[Problem]) -> TemplateError:
    first = problems[0]
    return TemplateError(first.problem, first.path, first.line, tuple(problems))


class Composer:
    """Renders mails. Keeps the programs of the `size` templates used last; share one per thread.

    A program is built from `Compiled` the first time its key is seen, and its source is checked once more then (X-02).
    """

    def __init__(self, size: int = 512):
        self._size = size
        self._kept: OrderedDict[Hashable, _Programs] = OrderedDict()
        self._brand: tuple[dict[str, Any], dict[str, Any]] = ({}, {})  # the brand seen last, as given and as templates see it

    def render(
        self, key: Hashable, compiled: Compiled, values: Mapping[str, Any], addresses: Addresses, brand: Mapping[str, Any], why: str
    ) -> Mail:
        """The mail for `values`, the nested plain values of at least `compiled.reads`. `key` names the template's version.

        `why` is the sentence that tells the reader why the mail came. Raises RenderSkip, and nothing else, when the mail must not go:
        `missing_value` with the path, `bad_link`, `wrong_type`, `too_large`, `empty_subject`, `render_failed`.
        """
        programs = self._programs(key, compiled)
        try:
            return programs.render(values, addresses, self._plain_brand(brand), why)
        except RenderSkip:
            raise
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            # A value of a kind that the template did not expect, such as text where it subtracts.
            raise RenderSkip("render_failed", {"problem": f"{type(error).__name__}: {error}"[:300]}) from error

    def _plain_brand(self, brand: Mapping[str, Any]) -> dict[str, Any]:
        if brand != self._brand[0]:
            self._brand = (dict(brand), plain(brand))
        return self._brand[1]

    def _programs(self, key: Hashable, compiled: Compiled) -> _Programs:
        kept = self._kept.get(key)
        if kept is None:
            kept = self._kept[key] = _Programs(compiled)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return kept


class _Programs:
    """The programs of one template."""

    __slots__ = ("html", "links", "scale", "subject", "text")

    def __init__(self, compiled: Compiled):
        self.subject = Program(compiled.subject, html=False)
        self.html = Program(compiled.html, html=True)
        self.text = Program(compiled.text, html=False)
        # Most links hold no merge tag: judged here once, they cost nothing per mail.
        self.links = tuple(Program(link.url, html=False) if "{" in link.url else destination(link.url) for link in compiled.links)
        self.scale = next((name for name in SCALES if f"mail.scores.{name}" in compiled.html), None)

    def render(self, values: Mapping[str, Any], addresses: Addresses, brand: dict[str, Any], why: str) -> Mail:
        data = {root: plain(value) for root, value in values.items()}
        data["brand"] = brand
        subject = one_line(self.subject.run(data)).strip()
        if not subject or len(subject) > SUBJECT_LIMIT:
            raise RenderSkip("empty_subject" if not subject else "too_large", {"problem": "subject", "length": len(subject)})
        data["mail"] = self._mail(subject, addresses, why)
        links = _Links(self.links, data, addresses.clicks)
        html = self.html.run(data, links)
        text = tidy(self.text.run(data, links))
        return Mail(subject, html, text, tuple(url or "" for url in links.destinations))

    def _mail(self, subject: str, addresses: Addresses, why: str) -> dict[str, Any]:
        mail: dict[str, Any] = {
            "subject": subject,
            "unsubscribe_url": addresses.unsubscribe,
            "preferences_url": addresses.preferences,
            "view_url": addresses.view,
            "pixel_url": addresses.pixel,
            "privacy_url": addresses.privacy,
            "honeypot_url": addresses.honeypot,
            "why": why,
        }
        if self.scale:
            scale, score = SCALES[self.scale], addresses.score
            if score is None:
                raise RenderSkip("render_failed", {"problem": "a survey needs the addresses of its scores"})
            mail["scale"] = {self.scale: {"low": scale.low, "high": scale.high, "least": scale.least, "most": scale.most}}
            ends = {scale.low: f", {scale.least.lower()}", scale.high: f", {scale.most.lower()}"}
            mail["scores"] = {
                self.scale: [
                    {"score": one, "url": score(one), "label": f"{one} out of {scale.high}{ends.get(one, '')}"}
                    for one in range(scale.low, scale.high + 1)
                ]
            }
        return mail


class _Links:
    """The addresses that links of one mail show. A destination is rendered when a link is first shown, so that one inside of an
    `if` needs its values only there."""

    numbered_links = True
    __slots__ = ("_clicks", "_data", "_sources", "destinations", "shown")

    def __init__(self, sources: Sequence[str | Program], data: Mapping[str, Any], clicks: Callable[[int], str] | None):
        self._sources = sources
        self._data = data
        self._clicks = clicks
        self.destinations: list[str | None] = [None] * len(sources)
        self.shown: list[str] = [""] * len(sources)

    def __getitem__(self, number: int) -> str:
        if self.destinations[number] is None:
            source = self._sources[number]
            url = source if isinstance(source, str) else destination(source.run(self._data))
            self.destinations[number] = url
            self.shown[number] = self._clicks(number) if self._clicks else url
        return self.shown[number]
