"""The template rules X-01 to X-18 of the mail standards, each with the tests that hold it, and those that no other file had.

X-15 (options of a CSS inliner) and X-18 (contact properties meant as HTML) rule what Nurture does not do: nothing is inlined, and every
value is escaped. The tests here show that both are refused.
"""

from __future__ import annotations

import importlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import RenderSkip, TemplateError
from app.flow.compose import Composer, compile_mail
from app.flow.composing.filters import DEPTH_LIMIT, LIST_LIMIT, STRING_LIMIT, plain
from app.flow.composing.templates import HTML, TEXT, Text, check
from tests.mails import ROOT, addresses

BLOCKS = {path.name: path.read_text("utf-8") for path in (ROOT / "campaigns/brand").glob("*.mjml")}
BRAND = {"name": "Acorn", "postal_address": "1 Sample Street", "color": "#2f6f4f"}
HELD_BY = {
    "X-01": "test_template_rules.test_x01_nothing_but_the_data_is_there test_compose.test_a_hostile_template_is_refused_quickly",
    "X-02": "test_compose.test_a_hostile_template_is_refused_quickly test_compose.test_what_was_stored_is_checked_again_before_it_runs "
    "test_compose.test_any_text_at_all_is_a_template_or_a_template_error test_hostile.test_templates",
    "X-03": "test_template_rules.test_x03_a_template_sees_bounded_plain_copies "
    "test_compose.test_a_loop_over_much_data_stops_at_the_output_limit",
    "X-04": "test_compiling.test_a_template_that_ends_or_stalls_the_child_is_named_and_the_rest_compiled "
    "test_compiling.test_too_much_computing_ends_the_child_and_not_us",
    "X-05": "test_template_rules.test_x05_a_subject_is_text_and_one_line test_compose.test_a_name_stays_a_name",
    "X-06": "test_audience.test_who_lacks_a_value_is_named test_audience.test_publishing_refuses_a_definite_hole_and_changes_nothing "
    "test_compose.test_a_missing_value_skips_the_mail_and_says_which",
    "X-10": "test_compose.test_a_name_stays_a_name test_compose.test_merge_tags_stand_between_sections_columns_and_components",
    "X-11": "test_compose.test_merge_tags_stand_between_sections_columns_and_components "
    "test_template_rules.test_x11_a_merge_tag_that_mjml_would_drop_is_named",
    "X-12": "test_compose.test_the_lint_names_the_line "
    "test_template_rules.test_x12_unknown_tags_and_attributes_have_the_nearest_right_name",
    "X-13": "test_compose.test_deep_or_endless_mjml_never_reaches_the_parser test_hostile.test_templates",
    "X-14": "test_compose.test_the_lint_names_the_line test_compose.test_blocks_that_include_each_other_are_refused",
    "X-15": "test_template_rules.test_x15_nothing_is_inlined_and_nothing_fetched",
    "X-16": "test_template_rules.test_x16_what_a_mail_must_not_hold",
    "X-17": "test_template_rules.test_x17_where_a_merge_tag_may_stand test_compose.test_a_bad_destination_skips_the_mail",
    "X-18": "test_template_rules.test_x18_a_value_is_never_html",
}


@pytest.mark.parametrize("rule", HELD_BY)
def test_every_rule_is_held_by_tests_that_exist(rule):
    for name in HELD_BY[rule].split():
        module, _, function = name.partition(".")
        assert callable(getattr(importlib.import_module(f"tests.{module}"), function))


def section(content: str) -> str:
    return f"<mj-section>\n<mj-column>\n{content}\n</mj-column>\n</mj-section>"


def text(content: str) -> str:
    return section(f"<mj-text>{content}</mj-text>")


def problems(source: str, subject: str = "Hello"):
    with pytest.raises(TemplateError) as caught:
        compile_mail(source, subject, path="x/y/mail.mjml", blocks=BLOCKS)
    return caught.value.problems


def rendered(source: str, values: dict, subject: str = "Hello"):
    compiled = compile_mail(source, subject, path="x/y/mail.mjml", blocks=BLOCKS)
    return Composer().render(1, compiled, values, addresses(), BRAND, "Because.")


def test_x01_nothing_but_the_data_is_there():
    for environment in (HTML, TEXT):
        assert environment.globals == {} and environment.loader is None and environment.sandboxed
    assert HTML.autoescape is True
    for name in ("range", "lipsum", "cycler", "joiner", "namespace", "dict", "self", "loop", "context", "request", "config"):
        assert [flaw.problem.partition(" is not")[0] for flaw in check(f"{{{{ {name} }}}}").flaws] == [name]


def test_x03_a_template_sees_bounded_plain_copies():
    class Row:
        name = "x"

        def __str__(self) -> str:
            return "a row"

    assert plain(Row()) == "a row" and plain(print) != print
    assert len(plain(list(range(5_000)))) == LIST_LIMIT == 1_000
    assert len(plain("x" * 50_000)) == STRING_LIMIT == 10 * 1024
    assert len(plain({str(n): n for n in range(5_000)})) == LIST_LIMIT
    deep: list = ["bottom"]
    for _ in range(20):
        deep = [deep]
    found = plain(deep)
    for _ in range(DEPTH_LIMIT - 1):
        (found,) = found
    assert found == [] and DEPTH_LIMIT == 6


def test_x05_a_subject_is_text_and_one_line():
    mail = rendered(text("{{ account.name }}"), {"account": {"name": "Birch & <Sons>\r\nBcc: x@example.com"}}, "For {{ account.name }}")
    assert mail.subject == "For Birch & <Sons> Bcc: x@example.com"
    assert "Birch &amp; &lt;Sons&gt;" in mail.html and "Birch & <Sons>" in mail.text


@pytest.mark.parametrize("attribute", ["width", "height", "align", "padding", "css-class"])
def test_x11_a_merge_tag_that_mjml_would_drop_is_named(attribute):
    [found] = problems(section(f'<mj-image alt="" src="https://a.example/i.png" {attribute}="{{{{ contact.traits.w }}}}" />'))
    assert (found.line, found.column) == (3, 48) and "may only name the brand" in found.problem


@pytest.mark.parametrize(
    ("source", "place", "fix"),
    [
        (section("<mj-txt>x</mj-txt>"), (3, 1), "mj-text"),
        (section("  <mj-buton href='https://a.example/'>x</mj-buton>"), (3, 3), "mj-button"),
        ("<mj-secton></mj-secton>", (1, 1), "mj-section"),
        (section('<mj-text colr="red">x</mj-text>'), (3, 10), "color"),
        (section('<mj-text  font-sise="3px">x</mj-text>'), (3, 11), "font-size"),
        (section('<mj-button herf="https://a.example/">x</mj-button>'), (3, 12), "href"),
        (text("a <stong>x</stong>"), (3, 12), "strong"),
        (text('<p stile="x">x</p>'), (3, 13), "style"),
        (text("{{ contact.first_name | uper }}"), (3, 34), "upper"),
        (text("{{ contcat.first_name }}"), (3, 13), "contact"),
        (text("{% if contact.x is mising %}x{% endif %}"), (3, 26), "missing"),
        ('<mj-include path="brand/survey-scales.mjml" />', (1, 1), "brand/survey-scale.mjml"),
        (text("ö\u2028{{ contact.first_name | uper }}"), (3, 36), "upper"),
        (text("x").replace("\n", "\r\n").replace("x", "{{ 'x' | lwoer }}", 1), (3, 16), "lower"),
        (text("a  {%- if account.id -%}  {{ account.id | uper }}{% endif %}"), (3, 52), "upper"),
        ("<mj-section>" + text("{{ account.id }}<b>{{ account.name }}</b><x>").partition("<mj-section>")[2], (3, 51), None),
        (section('<mj-style inline="inline">a { color: red }</mj-style>'), (3, 1), None),
    ],
)
def test_x12_unknown_tags_and_attributes_have_the_nearest_right_name(source, place, fix):
    found = problems(source)[0]
    assert ((found.line, found.column), found.fix) == (place, fix), found


def test_a_misspelt_tag_is_one_problem():
    assert len(problems(section("<mj-txt>Hello <b>you</b></mj-txt>"))) == 1


def test_x15_nothing_is_inlined_and_nothing_fetched():
    assert "has no attribute inline" in problems('<mj-style inline="inline">a { color: red }</mj-style>' + text("x"))[0].problem
    assert "@import" in problems("<mj-style>@import url(https://a.example/x.css);</mj-style>" + text("x"))[0].problem
    assert "does not belong into a mail" in problems(text('<link rel="stylesheet" href="https://a.example/x.css">'))[0].problem
    mail = rendered("<mj-style>@media (max-width: 9px) { .a { color: red } }</mj-style>" + text("x"), {})
    assert "@media (max-width: 9px)" in mail.html


@pytest.mark.parametrize(
    "content",
    [
        "<script>x</script>",
        "<SCRIPT>x</SCRIPT>",
        "<form action='https://a.example/'></form>",
        "<iframe src='https://a.example/'></iframe>",
        "<object></object>",
        "<base href='https://a.example/'>",
        "<meta http-equiv='refresh' content='0'>",
        "<p onclick='x()'>x</p>",
        "<p ONCLICK='x()'>x</p>",
        "<a href='javascript:x'>x</a>",
        "<a href='vbscript:x'>x</a>",
        "<a href='data:text/html,x'>x</a>",
        "<a href='&#106;avascript:x'>x</a>",
        "<a href='java\tscript:x'>x</a>",
        "<img alt='' src='javascript:x'>",
        "<img alt='' src='data:text/html;base64,AAAA'>",
        "<p style='background: url(javascript:x)'>x</p>",
        "<style>p { color: red }</style>",
        "<svg onload='x()'></svg>",
    ],
)
def test_x16_what_a_mail_must_not_hold(content):
    assert problems(text(content))[0].line == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<a href='{{ contact.traits.u }}'>x</a>", "needs | url"),
        ("<a href={{ contact.traits.u }}>x</a>", "with quotes"),
        ("<a href='https://a.example/{{ contact.traits.u }}'>x</a>", "needs | urlencode"),
        ("<a href='https://{{ contact.traits.u | url }}'>x</a>", "needs | urlencode"),
        ("<img alt='' src='{{ contact.traits.u }}'>", "needs | url"),
        ("<p class='{{ contact.traits.u }}'>x</p>", "may only name the brand"),
        ("<p style='color: {{ contact.traits.u }}'>x</p>", "may only name the brand"),
        ("<{{ contact.traits.u }}>x</p>", "HTML in mails has no <{{ contact.traits.u }}>"),
        ("<p {{ contact.traits.u }}>x</p>", "may not have the attribute {{ contact.traits.u }}"),
        ("<p on{{ contact.traits.u }}='x'>x</p>", "may not have the attribute"),
    ],
)
def test_x17_where_a_merge_tag_may_stand(content, said):
    assert any(said in one.problem for one in problems(text(content)))


def test_x18_a_value_is_never_html():
    value = {"contact": {"traits": {"bio": "<b>x</b><script>y</script>"}}}
    assert "&lt;b&gt;x&lt;/b&gt;&lt;script&gt;" in rendered(text("{{ contact.traits.bio }}"), value).html
    for filter in ("safe", "striptags", "forceescape", "escape"):
        assert f"there is no filter named {filter}" in problems(text(f"{{{{ contact.traits.bio | {filter} }}}}"))[0].problem
    with pytest.raises(RenderSkip):
        rendered(text("{{ contact.traits.bio }}"), {"contact": {"traits": {"bio": {"html": "<b>"}}}})


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="{}%#-+ab \n\r'\"|.", max_size=60))
def test_every_token_stands_where_it_is_said_to(source):
    """Columns are exact: each token of a source is found at its offset, with nothing but white space between two."""
    given = Text(source)
    end = 0
    try:
        for offset, _, value in given.tokens():
            assert given.source[offset : offset + len(value)] == value
            assert not given.source[end:offset].strip()
            end = offset + len(value)
    except Exception as error:
        assert type(error).__name__ == "TemplateSyntaxError" and 0 <= error.lineno <= len(given.source)
