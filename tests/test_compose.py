"""Composing: what a template may say, what it costs to say something hostile, and that contact data stays data."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from app.errors import RenderSkip, TemplateError
from app.flow.compose import Compiled, Composer, compile_mail
from app.flow.composing.templates import check
from tests.mails import APPROVED, ROOT, addresses, files, shipped

BLOCKS = {path.name: path.read_text("utf-8") for path in (ROOT / "campaigns/brand").glob("*.mjml")}
BRAND = {
    "name": "Acorn",
    "website": "https://www.example.com/",
    "app_url": "https://app.example.com/",
    "support_email": "help@example.com",
    "postal_address": "1 Sample Street",
    "color": "#2f6f4f",
}
FOOT = '<mj-text><a href="{{ mail.unsubscribe_url }}">Stop</a> {{ brand.name }}, {{ brand.postal_address }}</mj-text>'


def section(content: str) -> str:
    return f"<mj-section>\n<mj-column>\n<mj-text>{content}</mj-text>\n</mj-column>\n</mj-section>"


def made(source: str, subject: str = "Hello", blocks=BLOCKS, **more) -> Compiled:
    return compile_mail(source, subject, path="x/y/mail.mjml", blocks=blocks, **more)


def rendered(source: str, values: dict | None = None, subject: str = "Hello", brand=BRAND, at=None, **more):
    return Composer().render("key", made(source, subject, **more), values or {}, at or addresses(), brand, "Because.")


def problems(source: str, subject: str = "Hello", **more) -> list[str]:
    with pytest.raises(TemplateError) as caught:
        made(source, subject, **more)
    assert caught.value.problems[0].problem == caught.value.problem
    return [str(problem) for problem in caught.value.problems]


class Outline(HTMLParser):
    """The tags and attribute names of a document, which no value may change."""

    def __init__(self, html: str):
        super().__init__()
        self.seen: list = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, tuple(name for name, _ in attrs)))


# The shipped mails ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mails():
    return shipped()


def test_the_shipped_mails_are_the_approved_ones(mails):
    """Run `.venv/bin/python tests/mails.py` to approve a change, after looking at it."""
    found = {f"{name}.{kind}": text for name, mail in mails.items() for kind, text in files(mail).items()}
    assert sorted(found) == sorted(path.name for path in APPROVED.iterdir())
    for name, text in found.items():
        assert text == (APPROVED / name).read_text("utf-8"), f"{name} differs: look at it, then run tests/mails.py"


def test_every_shipped_mail_is_whole(mails):
    for name, mail in mails.items():
        page = LexborHTMLParser(mail.html)
        assert page.css_first("html").attributes["lang"] == "en", name
        assert page.css_first('meta[name="color-scheme"]').attributes["content"] == "light dark"
        assert "@media (prefers-color-scheme: dark)" in mail.html
        assert (
            page.css_first('a[href="https://n.example/u/T"]') is not None and page.css_first('a[href="https://n.example/p/T"]') is not None
        )
        assert "1 Sample Street" in page.body.text() and "1 Sample Street" in mail.text
        assert "https://n.example/u/T" in mail.text and "You get this email because" in mail.text
        assert all(image.attributes.get("alt") is not None for image in page.css("img"))
        # The pixel is the only picture, so the mail is the same with images off.
        assert [image.attributes["src"] for image in page.css("img")] == ["https://n.example/o/T.gif"]
        # All layout, none read out as a table.
        assert all(table.attributes.get("role") == "presentation" for table in page.css("table"))
        assert "{{" not in mail.html + mail.text + mail.subject and "{%" not in mail.html + mail.text
        assert "fonts.googleapis.com" not in mail.html and "mailjet" not in mail.html
        assert all(url.startswith("https://") for url in mail.links)
        assert len(mail.html) < 30_000
        assert "\n\n\n" not in mail.text and not any(line != line.rstrip() for line in mail.text.split("\n"))


def test_shipped_mails_render_for_somebody_of_whom_nothing_is_known():
    """A newcomer's first event names an account and an address, and must yield a mail."""
    from app.flow.check import read

    for folder in read(ROOT / "campaigns").folders:
        for one in folder.templates:
            mail = Composer().render(one.path, one.compiled, {"response": {"score": 9}}, addresses(), BRAND, "Because.")
            assert mail.subject and "  " not in mail.subject, one.path


def test_the_survey_offers_every_score_to_screen_readers_and_in_the_text(mails):
    mail = mails["onboarding.onboarding-survey.ask"]
    buttons = LexborHTMLParser(mail.html).css("a.score")
    assert [one.text() for one in buttons] == [str(score) for score in range(11)]
    assert [one.attributes["href"] for one in buttons] == [f"https://n.example/s/T/{score}" for score in range(11)]
    assert buttons[0].attributes["aria-label"] == "0 out of 10, not at all likely"
    assert "\n10 out of 10, extremely likely: https://n.example/s/T/10\n" in mail.text


# Compiling -----------------------------------------------------------------------------------------------------------


def test_links_are_numbered_in_order_and_the_others_left_alone():
    source = section(
        '<p><a href="https://a.example/x?a=1&amp;b=2">One</a> <a href="{{ brand.app_url }}r">Two</a> '
        '<a href="https://b.example/{{ account.name | urlencode }}">Three</a> <a href="mailto:a@example.com">Mail</a> '
        '<a href="tel:+4912">Call</a> <a href="#top">Up</a> <a href="https://c.example/" data-no-track="1">Plain</a></p>'
    )
    source += '<mj-section><mj-column><mj-button href="https://d.example/" data-no-track="1">Go</mj-button></mj-column></mj-section>'
    compiled = made(source)
    assert [(link.url, link.label, link.track) for link in compiled.links] == [
        ("https://a.example/x?a=1&b=2", "One", True),
        ("{{ brand.app_url }}r", "Two", True),
        ("https://b.example/{{ account.name | urlencode }}", "Three", True),
    ]
    assert compiled.reads == {"account.name"}
    mail = Composer().render(1, compiled, {"account": {"name": "A/B & C"}}, addresses(), BRAND, "Because.")
    assert mail.links == ("https://a.example/x?a=1&b=2", "https://app.example.com/r", "https://b.example/A%2FB%20%26%20C")
    hrefs = [one.attributes["href"] for one in LexborHTMLParser(mail.html).css("a")]
    assert hrefs[:8] == [
        *(f"https://n.example/c/{number}" for number in range(3)),
        "mailto:a@example.com",
        "tel:+4912",
        "#top",
        "https://c.example/",
        "https://d.example/",
    ]
    assert "data-no-track" not in mail.html
    assert "Three <https://n.example/c/2>" in mail.text and "Go: https://d.example/" in mail.text


def test_no_click_tracking_leaves_the_destinations():
    mail = rendered(section('<p><a href="https://a.example/?a=1&amp;b=2">One</a></p>'), at=addresses(clicks=None, pixel=None))
    assert 'href="https://a.example/?a=1&amp;b=2"' in mail.html and mail.links == ("https://a.example/?a=1&b=2",)
    assert "/o/T.gif" not in mail.html


def test_a_destination_is_only_needed_where_its_link_is_shown():
    source = section('{% if event.properties.url %}<p><a href="{{ event.properties.url | url }}">Your report</a></p>{% endif %}<p>End</p>')
    assert rendered(source).links == ("",)
    mail = rendered(source, {"event": {"properties": {"url": "https://a.example/r"}}})
    assert mail.links == ("https://a.example/r",) and "Your report <https://n.example/c/0>" in mail.text


@pytest.mark.parametrize(
    "url",
    ["javascript:alert(1)", "//evil.example", "https://a@evil.example/", "https:///x", "http://a b/", "data:text/html,x", "https://[::1/"],
)
def test_a_bad_destination_skips_the_mail(url):
    """T-11: checked after rendering, whoever wrote the value."""
    for href in ("{{ event.properties.url | url }}", "{{ brand.website }}"):
        values = {"event": {"properties": {"url": url}}}
        with pytest.raises(RenderSkip) as caught:
            rendered(section(f'<p><a href="{href}">x</a></p>'), values, brand={**BRAND, "website": url})
        assert caught.value.reason == "bad_link"


def test_merge_tags_stand_between_sections_columns_and_components():
    source = """
{% if contact.traits.a < 3 %}
<mj-section>{% if contact.traits.b %}<mj-column>
{% for one in contact.traits.list %}<mj-text>Row {{ one }}</mj-text>{% endfor %}
</mj-column>{% endif %}
</mj-section>
{% else %}
<mj-section><mj-column><mj-text>Other</mj-text></mj-column></mj-section>
{% endif %}
"""
    mail = rendered(source, {"contact": {"traits": {"a": 2, "b": True, "list": ["x", "y"]}}})
    assert [line for line in mail.text.split("\n") if line.startswith(("Row", "Other"))] == ["Row x", "Row y"]
    other = rendered(source, {"contact": {"traits": {"a": 3}}})
    assert "Row" not in other.html and "\n\nOther\n\n" in other.text
    assert {"contact.traits.a", "contact.traits.b", "contact.traits.list"} == made(source).reads


def test_the_text_part_reads_like_text():
    source = section(
        "<h1>Head</h1><p>One<br>two &amp; <b>three</b>   four</p><ul><li>Apple</li><li>Pear<ol><li>a</li><li>b</li></ol></li></ul>"
        '<p>See <a href="https://a.example/">https://a.example/</a></p>'
    )
    source += '<mj-section><mj-column><mj-image src="https://a.example/i.png" alt="A chart" /><mj-divider /></mj-column></mj-section>'
    text = rendered(source, at=addresses(clicks=None)).text
    assert text.startswith("Acorn\n\nHead\n\nOne\ntwo & three four\n\n- Apple\n- Pear\n\n  1. a\n  2. b\n\nSee https://a.example/\n")
    assert "A chart" in text and "|" not in text


def test_a_template_may_stand_alone_but_brings_the_legal_parts():
    alone = f"<mjml><mj-body>{section('<p>Hi</p>')}<mj-section><mj-column>{FOOT}</mj-column></mj-section></mj-body></mjml>"
    mail = rendered(alone)
    assert "Choose what you get" not in mail.html and "1 Sample Street" in mail.text
    bare = f"<!-- mine -->\n<mjml><mj-body>{section('<p>Hi</p>')}</mj-body></mjml>"
    found = " ".join(problems(bare))
    assert "unsubscribe link is missing" in found and "postal address is missing" in found and "nothing says who sends" in found


def test_a_survey_gets_its_scale_appended_and_its_question_escaped():
    mail = rendered(section("<p>Hi</p>"), {"account": {"name": "<b>"}}, survey="csat", question="1 < 2, {{ account.name }}?")
    assert "1 &lt; 2, &lt;b&gt;?" in mail.html and "1 < 2, <b>?" in mail.text
    assert [one.text() for one in LexborHTMLParser(mail.html).css("a.score")] == ["1", "2", "3", "4", "5"]
    twice = rendered(section("<p>Hi</p>") + '<mj-include path="brand/survey-scale.mjml" />', survey="csat", question="Q?")
    assert len(LexborHTMLParser(twice.html).css("a.score")) == 5
    assert "survey steps" in problems(section("{{ mail.question }}"))[0]
    with pytest.raises(RenderSkip):
        rendered(section("x"), survey="nps", question="Q?", at=addresses(score=None))


def test_the_preheader_goes_into_the_head_and_not_into_the_text():
    mail = rendered("<mj-preview>Peek {{ brand.name }}</mj-preview>" + section("<p>Hi</p>"))
    assert "Peek Acorn" in LexborHTMLParser(mail.html).body.text() and "Peek" not in mail.text


@pytest.mark.parametrize(
    ("source", "line", "says"),
    [
        (section("<p>a</p>\n<script>alert(1)</script>"), 4, "<script> does not belong"),
        (section('<a href="javascript:alert(1)">x</a>'), 3, "javascript: is not for mails"),
        (section('<a href="java&#115;cript:alert(1)">x</a>'), 3, "javascript: is not for mails"),
        (section('<a href=" JavaScript:alert(1)">x</a>'), 3, "javascript: is not for mails"),
        (section('<a href="data:text/html,x">x</a>'), 3, "data: is not for mails"),
        (section('<a href="www.example.com">x</a>'), 3, "starts with https://"),
        (section('<a href="//evil.example">x</a>'), 3, "starts with https://"),
        (section('<a href="{{ contact.traits.site }}">x</a>'), 3, "needs | url"),
        (section('<a href="https://a.example/?q={{ contact.first_name }}">x</a>'), 3, "needs | urlencode"),
        (section("<a href={{ contact.first_name }}>x</a>"), 3, "with quotes"),
        (section('<p onclick="x()">x</p>'), 3, "may not have the attribute onclick"),
        (section('<p {{ contact.first_name }}="x">x</p>'), 3, "may not have the attribute"),
        (section('<p style="color: {{ contact.first_name }}">x</p>'), 3, "may only name the brand"),
        (section('<p style="background: expression(x)">x</p>'), 3, "does not belong into styles"),
        (section('<a href="{% if contact.id %}https://a.example{% endif %}">x</a>'), 3, "around the whole element"),
        (section("<form><input></form>"), 3, "<form> does not belong"),
        (section('<meta http-equiv="refresh" content="0">'), 3, "<meta> does not belong"),
        (section("<iframe></iframe>"), 3, "<iframe> does not belong"),
        (section("<svg></svg>"), 3, "<svg> does not belong"),
        (section("<!--[if mso]><script></script><![endif]-->"), 3, "conditional comments"),
        (section("<b><i>x</b></i>"), 3, "</b> stands where </i> belongs"),
        (section("a < b"), 3, "write &lt;"),
        (section('<img src="https://a.example/i.png">'), 3, "needs alt"),
        (section("{{ contact.first_name"), 3, "merge tag"),
        (section("\n\n{{ contact.first_name.lower() }}"), 5, "a call"),
        (section("{% raw %}{{ x }}{% endraw %}"), 3, "{% raw %}"),
        ("<mj-section>\n<mj-column>\n<mj-txt>x</mj-txt>\n</mj-column>\n</mj-section>", 3, "MJML has no <mj-txt>"),
        ('<mj-section>\n<mj-column>\n<mj-text colour="red">x</mj-text>\n</mj-column>\n</mj-section>', 3, "has no attribute colour"),
        ("<mj-section>\n<mj-text>x</mj-text>\n</mj-section>", 2, "does not belong into <mj-section>"),
        ("<mj-section>\n<mj-column>\nHello\n</mj-column></mj-section>", 3, "text stands in mj-text"),
        ("<mj-section>\n<mj-column>", 2, "<mj-column> is never closed"),
        ("<mj-section>\n<mj-column>\n<mj-text>x", 3, "<mj-text> is never closed"),
        ("<mj-section>\n<mj-column><mj-social></mj-social></mj-column></mj-section>", 2, "another host"),
        ('<mj-section>\n<mj-include path="/etc/passwd" /></mj-section>', 2, "there is no block"),
        ('\n<mj-include path="brand/../lifecycle.yaml" />', 2, "there is no block"),
        ("<mj-section>\n<mj-column width={{ contact.id }}>", 2, "with quotes"),
        ("<mj-style>\n@import url(x);</mj-style>" + section("x"), 2, "@import"),
        ("<mj-style>.a { color: {{ contact.first_name }} }</mj-style>" + section("x"), 1, "brand.color"),
        (section("x") + "\n<!-- never closed", 6, "never closed"),
    ],
)
def test_the_lint_names_the_line(source, line, says):
    found = problems(source)
    assert any(one.startswith(f"x/y/mail.mjml:{line}: ") and says in one for one in found), found


def test_all_problems_come_at_once_and_a_block_is_blamed_by_its_own_name():
    found = problems(section("<script></script>\n<iframe></iframe>"))
    assert [one.split(": ")[0] for one in found] == ["x/y/mail.mjml:3", "x/y/mail.mjml:4"]
    blocks = {**BLOCKS, "tip.mjml": "<mj-section>\n<mj-wrong />\n</mj-section>"}
    assert problems('<mj-include path="brand/tip.mjml" />', blocks=blocks) == ["brand/tip.mjml:2: MJML has no <mj-wrong>"]
    assert "subject: " in problems(section("x"), subject="{{ 1 ** 2 }}")[0]


def test_a_mail_that_would_be_cut_off_is_refused():
    assert "larger than 100 KB" in problems(section("<p>" + "word " * 22_000 + "</p>"))[0]


# Hostile templates ---------------------------------------------------------------------------------------------------

HOSTILE = {
    "power": "{{ 9**(9**9) }}",
    "product": "{{ 'a' * 999999999 }}",
    "format": "{{ '%999999999d' % 1 }}",
    "center": "{{ 'x'|center(90000000) }}",
    "range": "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
    "three loops": "{% for a in account.traits.l %}" * 3 + "x" + "{% endfor %}" * 3,
    "recursive loop": "{% for a in account.traits.l recursive %}{{ loop(a) }}{% endfor %}",
    "loop over text": "{% for a in 'xxxxxxxxxxxxxxxx' %}x{% endfor %}",
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ account.__init__.__globals__ }}",
    "attr": "{{ account|attr('__class__') }}",
    "format map": "{{ '{0.__class__}'.format(account) }}",
    "safe": "{{ contact.first_name | safe }}",
    "autoescape": "{% autoescape false %}{{ contact.first_name }}{% endautoescape %}",
    "xmlattr": "{{ account | xmlattr }}",
    "tojson": "{{ account | tojson }}",
    "map": "{{ account.traits.l | map('upper') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'x' as y %}",
    "extends": "{% extends 'x' %}",
    "block": "{% block x %}{% endblock %}",
    "set": "{% set x = 'a' %}",
    "self": "{{ self }}",
    "config": "{{ config }}",
    "parentheses": "{{ " + "(" * 5_000,
    "a long sum": "{{ 1" + " + 1" * 5_000 + " }}",
    "a long path": "{{ account" + ".a" * 5_000 + " }}",
    "signs": "{{ " + "-" * 5_000 + "1 }}",
    "a long number": "{{ " + "9" * 5_000 + " }}",
    "ifs": "{% if account.id %}" * 5_000,
    "open tags": "{% " * 60_000,
    "open braces": "{{ " * 60_000,
    "many tags": "{{ contact.first_name }}" * 3_000,
    "nested tags": "<div>" * 5_000 + "</div>" * 5_000,
    "open elements": "<b" * 60_000,
    "open quotes": '<b a="' * 30_000,
    "comments": "<!--" * 50_000,
    "attributes": "<b " + "a " * 60_000 + ">",
    "too long": "x" * 300_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused_quickly(name):
    """X-02, X-13: a TemplateError with a line where there is one, in well under two seconds; the process lives."""
    begun = time.perf_counter()
    with pytest.raises(TemplateError) as caught:
        made(section(HOSTILE[name]))
    assert time.perf_counter() - begun < 2
    assert caught.value.line is not None or name == "too long"


@pytest.mark.parametrize(
    "source",
    [
        "<mj-wrapper>" * 5_000 + "</mj-wrapper>" * 5_000,
        "<mjml><mj-body>" + "<mj-section>" * 5_000 + "</mj-section>" * 5_000 + "</mj-body></mjml>",
        "<mj-section>" + "<mj-column></mj-column>" * 6_000 + "</mj-section>",
    ],
)
def test_deep_or_endless_mjml_never_reaches_the_parser(source):
    """1,850 nested elements end the process without an exception (finding 3); this test's own process is the witness."""
    begun = time.perf_counter()
    with pytest.raises(TemplateError) as caught:
        made(source)
    assert caught.value.line == 1 and time.perf_counter() - begun < 2


def test_blocks_that_include_each_other_are_refused():
    for blocks in (
        {"a.mjml": '<mj-include path="brand/a.mjml" />'},
        {"a.mjml": '\n<mj-include path="brand/b.mjml" />', "b.mjml": '<mj-include path="brand/a.mjml" />'},
    ):
        assert "includes itself" in problems('<mj-include path="brand/a.mjml" />', blocks={**BLOCKS, **blocks})[0]
    # Each twice the next: 2^30 sections, were it not for the limit on depth.
    doubling = {f"b{n}.mjml": f'<mj-include path="brand/b{n + 1}.mjml" />' * 2 for n in range(30)}
    doubling["b30.mjml"] = section("x")
    begun = time.perf_counter()
    assert "nested 8 deep" in problems('<mj-include path="brand/b0.mjml" />', blocks={**BLOCKS, **doubling})[0]
    tens = {f"c{n}.mjml": f'<mj-include path="brand/c{n + 1}.mjml" />' * 12 for n in range(6)}
    tens["c6.mjml"] = section("x")
    assert "a mail may have 5000 elements" in " ".join(problems('<mj-include path="brand/c0.mjml" />', blocks={**BLOCKS, **tens}))
    assert time.perf_counter() - begun < 4


def test_a_loop_over_much_data_stops_at_the_output_limit():
    source = section("{% for a in account.traits.l %}{% for b in account.traits.l %}" + "x" * 1_000 + "{% endfor %}{% endfor %}")
    begun = time.perf_counter()
    with pytest.raises(RenderSkip) as caught:
        rendered(source, {"account": {"traits": {"l": list(range(100_000))}}})
    assert caught.value.reason == "too_large" and time.perf_counter() - begun < 2
    assert (
        "Row 999"
        in rendered(
            section("{% for a in account.traits.l %}<p>Row {{ a }}</p>{% endfor %}"), {"account": {"traits": {"l": list(range(1_000))}}}
        ).text
    )


@pytest.mark.parametrize(
    "body",
    [
        "{% for b in account.traits.l %}{% if a == 'z' %}x{% endif %}{% endfor %}",
        "{% for b in account.traits.l %}" + "{% if a == b == 'z' %}x{% endif %}" * 200 + "{% endfor %}",
        "{% if account.traits.l | join == 'z' %}x{% endif %}" * 100,
        "{% for b in account.traits.l if account.traits.l | join == 'z' %}x{% endfor %}",
    ],
)
def test_a_loop_that_shows_nothing_stops_as_well(body):
    """A thousand times a thousand turns that make no output: for whoever has a list as long as that, the mail is skipped."""
    source = section("{% for a in account.traits.l %}" + body + "{% endfor %}")
    begun = time.process_time()
    with pytest.raises(RenderSkip) as caught:
        rendered(source, {"account": {"traits": {"l": list(range(100_000))}}})
    assert caught.value.reason == "too_large" and time.process_time() - begun < 2
    few = {"account": {"traits": {"l": list(range(10))}}}
    assert "\n" in rendered(source, few).text


def test_what_was_stored_is_checked_again_before_it_runs():
    for part in ("subject", "html", "text"):
        sources = {"subject": "s", "html": "h", "text": "t", part: "{{ 9**(9**9) }}"}
        with pytest.raises(RenderSkip) as caught:
            Composer().render(1, Compiled(**sources, links=(), reads=frozenset()), {}, addresses(), BRAND, "")
        assert caught.value.reason == "bad_template"


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="{}%#-+*()[]|.'\"\\ \n0123456789abcdefijnorst_<>=/~,", max_size=80))
def test_any_text_at_all_is_a_template_or_a_template_error(text):
    try:
        made(section("{{ " + text + " }}"))
        made(section(text))
    except TemplateError as error:
        assert error.problems


# Values --------------------------------------------------------------------------------------------------------------


def test_a_missing_value_skips_the_mail_and_says_which():
    for source, subject in (
        (section("{{ contact.first_name }}"), "Hello"),
        (section("x"), "{{ contact.first_name }}"),
        (section("{{ contact.first_name | upper }}"), "Hello"),
    ):
        for values in ({}, {"contact": {}}, {"contact": {"first_name": None}}, {"contact": {"first_name": " \n"}}):
            with pytest.raises(RenderSkip) as caught:
                rendered(source, values, subject)
            assert (caught.value.reason, caught.value.evidence) == ("missing_value", {"path": "contact.first_name"})
    with pytest.raises(RenderSkip) as caught:
        rendered(section("{% for a in account.traits.l %}x{% endfor %}"))
    assert caught.value.evidence == {"path": "account.traits.l"}


def test_default_if_and_comparing_do_without_the_value():
    source = section(
        "<p>{{ contact.first_name | default('you') }} {{ contact.first_name | default('you') | upper }}</p>"
        "<p>[{% if contact.traits.n > 3 %}a{% endif %}{% if contact.traits.n != 3 %}b{% endif %}"
        "{% if contact.traits.n is missing %}c{% endif %}{% if not contact.traits.n %}d{% endif %}"
        "{% if 'x' in contact.roles %}e{% endif %}]</p>"
    )
    text = rendered(source).text
    assert "you YOU" in text and "[cd]" in text


def test_filters_and_the_look_of_values():
    values = {
        "account": {
            "created_at": datetime(2026, 2, 1, 12, tzinfo=UTC),
            "renewal_date": "2026-03-05T00:00:00+00:00",
            "seats": 12,
            "revenue": 1234.0,
            "traits": {"partner": True, "l": ["b", "a"], "rate": 3.14159, "text": "so so"},
        },
        "contact": {"roles": frozenset({"user", "admin"})},
        "now": datetime(2026, 3, 2, 9, tzinfo=UTC),
    }
    lines = {
        "{{ account.created_at }}": "1 February 2026",
        "{{ account.created_at | date('%d.%m.%Y') }}": "01.02.2026",
        "{{ account.created_at | days_since }}": "28",
        "{{ account.renewal_date | days_until }}": "3",
        "{{ account.renewal_date }}": "5 March 2026",
        "{{ now | date('%Y') }}": "2026",
        "{{ account.seats - 2 }}": "10",
        "{{ account.revenue }}": "1234",
        "{{ account.traits.partner }}": "yes",
        "{{ account.traits.l }}": "b, a",
        "{{ account.traits.l | join(' + ') }}": "b + a",
        "{{ account.traits.l | first }}{{ account.traits.l | last }}{{ account.traits.l | length }}": "ba2",
        "{{ account.traits.rate | round(2) }}": "3.14",
        "{{ account.traits.text | title }}": "So So",
        "{{ contact.roles }}": "admin, user",
        "{{ 'few' if account.seats < 20 else 'many' }}": "few",
        "{% for one in account.traits.l %}{{ loop.index }}{{ one }}{% endfor %}": "1b2a",
    }
    text = rendered(section("".join(f"<p>={source}=</p>" for source in lines)), values).text
    found = [line[1:-1] for line in text.split("\n") if line.startswith("=")]
    assert found == list(lines.values())
    assert made(section("{{ account.created_at | days_since }}")).reads == {"account.created_at", "now"}


def test_values_kept_as_json_render_the_same_again():
    source = section("{{ account.created_at }} {{ account.created_at | days_since }} {{ contact.roles }}")
    live = {
        "account": {"created_at": datetime(2026, 2, 1, tzinfo=UTC)},
        "contact": {"roles": ["admin"]},
        "now": datetime(2026, 3, 2, tzinfo=UTC),
    }
    kept = {"account": {"created_at": "2026-02-01T00:00:00+00:00"}, "contact": {"roles": ["admin"]}, "now": "2026-03-02T00:00:00+00:00"}
    assert rendered(source, live) == rendered(source, kept)


@pytest.mark.parametrize(
    "source",
    [
        "{{ account.name - 1 }}",
        "{{ account.name | round }}",
        "{{ account.name | date }}",
        "{{ account.seats / 0 }}",
        "{{ account.traits }}",
    ],
)
def test_a_value_of_another_kind_skips_the_mail(source):
    with pytest.raises(RenderSkip) as caught:
        rendered(section(source), {"account": {"name": "Birch", "seats": 3, "traits": {"a": 1}}})
    assert caught.value.reason in ("render_failed", "wrong_type")


PERSONAL = section(
    '<h1>{{ contact.first_name }}</h1><p title="{{ contact.first_name }}">x '
    '<a href="https://a.example/{{ contact.first_name | urlencode }}">y</a></p>'
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(st.text(min_size=1, max_size=60), st.text(alphabet="<>\"'&={}%/ \r\n\0\u202e\u2066javscript:onlck", min_size=1, max_size=60))
)
def test_a_name_stays_a_name(name):
    """Whatever a contact is called: the HTML keeps its elements and attributes, the subject is one line, nothing is evaluated."""
    compiled = _PERSONAL
    plain_mail = _COMPOSER.render("p", compiled, {"contact": {"first_name": "Mara"}}, addresses(), BRAND, "Because.")
    try:
        mail = _COMPOSER.render("p", compiled, {"contact": {"first_name": name}}, addresses(), BRAND, "Because.")
    except RenderSkip as skip:
        assert skip.reason == "missing_value"  # nothing of it can be seen
        return
    assert Outline(mail.html).seen == Outline(plain_mail.html).seen
    assert not any(ord(letter) < 32 or letter in "\x7f\u2028\u2029\u202e\u2066" for letter in mail.subject)
    assert mail.text.count("\n") == plain_mail.text.count("\n")


_COMPOSER = Composer()
_PERSONAL = made(PERSONAL, "Hi {{ contact.first_name }}")


def test_known_bad_names():
    for name in (
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "{{ 9**9 }}",
        "Mara\r\nBcc: x@example.com",
        "مارا",
        "🦊" * 20,
    ):
        mail = _COMPOSER.render("p", _PERSONAL, {"contact": {"first_name": name}}, addresses(), BRAND, "Because.")
        assert "<script" not in mail.html and "<img src=x" not in mail.html and '"><' + "img" not in mail.html
        assert "\n" not in mail.subject and "\r" not in mail.html + mail.text
        assert mail.subject.startswith("Hi " + name[:3])


def test_the_composer_keeps_a_bounded_number_of_programs():
    composer = Composer(size=3)
    compiled = made(section("x"))
    for key in range(10):
        composer.render(key, compiled, {}, addresses(), BRAND, "")
    assert len(composer._kept) == 3


def test_compiling_is_deterministic_and_the_order_of_reading_does_not_matter():
    source = section("{{ contact.first_name }} {{ account.name }}") + section('<a href="https://a.example/">x</a>')
    values = {"contact": {"first_name": "M", "last_name": "x"}, "account": {"name": "A"}}
    keys = list(values)
    random.Random(1).shuffle(keys)
    assert made(source) == made(source)
    assert rendered(source, values) == rendered(source, {key: values[key] for key in keys})


def test_checking_is_linear_in_the_source():
    short, long = ("x {{ contact.first_name }} " * count for count in (40, 160))
    begun = time.perf_counter()
    assert not check(short).flaws
    middle = time.perf_counter()
    assert not check(long).flaws
    assert time.perf_counter() - middle < 20 * (middle - begun) + 0.05


def test_a_honeypot_is_hidden_in_the_html_absent_from_the_text_and_off_by_default():
    trap = "https://n.example/c/TRAP"
    at = addresses(honeypot=trap)
    assert trap not in rendered(section("Hi"), at=at).html
    place = "<mj-raw>{% if mail.pixel_url %}"
    assert BLOCKS["layout.mjml"].count(place) == 1
    blocks = {**BLOCKS, "layout.mjml": BLOCKS["layout.mjml"].replace(place, f'<mj-include path="brand/honeypot.mjml" />{place}')}
    mail = rendered(section("Hi"), at=at, blocks=blocks)
    [link] = [one for one in LexborHTMLParser(mail.html).css("a") if one.attributes["href"] == trap]
    assert link.attributes["aria-hidden"] == "true" and "display:none" in link.attributes["style"]  # so no keyboard reaches it
    assert trap not in mail.text and trap not in mail.links
    without = rendered(section("Hi"), at=addresses(clicks=None), blocks=blocks)
    assert trap not in without.html and "honeypot" not in without.html
