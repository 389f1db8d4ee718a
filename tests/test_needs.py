"""Which values a text cannot do without: many forms, and the proof by rendering that nothing else is needed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import RenderSkip
from app.flow.compose import Compiled, Composer, Link
from app.flow.composing.needs import needs, needs_of
from app.flow.composing.templates import check
from tests.mails import addresses

A, B = "contact.first_name", "account.name"
FORMS = {
    # Shown as it is, or worked with: needed.
    "{{ A }}": {A},
    "{{ A }} {{ B }}": {A, B},
    "{{ A | upper }}": {A},
    "{{ A | upper | default('x') }}": {A},
    "{{ A | default(B) }}": {B},
    "{{ A + 1 }}": {A},
    "{{ A ~ 'x' }}": {A},
    "{{ -A }}": {A},
    "{{ A and 'x' }}": {A},
    "{{ 'x' and A }}": {A},
    "{{ [A, 'x'] | join }}": {A},
    "{{ A | days_since }}": {A},
    "{% for one in A %}{{ one }}{% endfor %}": {A},
    "{% for one in A %}{{ B }}{% endfor %}": {A, B},
    "{% for one in A %}{{ one.name }}{{ loop.index }}{% else %}{{ B }}{% endfor %}": {A, B},
    "{{ account.owner.name }}": {"account.owner.name"},
    "{{ account['name'] }}": {B},
    # With a fallback: not needed.
    "{{ A | default('x') }}": set(),
    "{{ A | default }}": set(),
    "{{ A | default('x') | upper }}": set(),
    "{{ A | default(B) | default('x') }}": set(),
    "{{ A or 'x' }}": set(),
    "{{ A or B }}": {B},
    "{{ A or B | default('x') }}": set(),
    # Asked about, compared: not needed.
    "{% if A %}x{% endif %}": set(),
    "{% if A > 3 %}x{% endif %}": set(),
    "{% if A == B %}x{% endif %}": set(),
    "{% if A is missing %}x{% endif %}": set(),
    "{% if 'x' in A %}x{% endif %}": set(),
    "{% if A + 1 > 3 %}x{% endif %}": {A},
    "{% if A | length > 3 %}x{% endif %}": {A},
    "{{ 'x' if A else 'y' }}": set(),
    # Guards that guard.
    "{% if A %}{{ A }}{% endif %}": set(),
    "{% if A and B %}{{ A }}{{ B }}{% endif %}": set(),
    "{% if A %}{% if B %}{{ A }}{{ B }}{% endif %}{% endif %}": set(),
    "{% if A is defined %}{{ A }}{% endif %}": set(),
    "{% if A is not missing %}{{ A }}{% endif %}": set(),
    "{% if not A is missing %}{{ A }}{% endif %}": set(),
    "{% if A is missing %}x{% else %}{{ A }}{% endif %}": set(),
    "{% if A is none %}x{% else %}{{ A }}{% endif %}": set(),
    "{% if not A %}x{% else %}{{ A }}{% endif %}": set(),
    "{% if not A %}x{% elif B %}{{ A }}{{ B }}{% endif %}": set(),
    "{% if A is missing or B is missing %}x{% else %}{{ A }}{{ B }}{% endif %}": set(),
    "{% if not (A and B) %}x{% else %}{{ A }}{{ B }}{% endif %}": set(),
    "{% if A > 3 %}{{ A }}{% endif %}": set(),
    "{% if A != 'x' %}{{ A }}{% endif %}": set(),
    "{% if 1 < A < 3 %}{{ A }}{% endif %}": set(),
    "{% if 'x' in A %}{{ A }}{% endif %}": set(),
    "{% if A in ['x'] %}{{ A }}{% endif %}": set(),
    "{% if A | default('') %}{{ A }}{% endif %}": set(),
    "{{ A if A else 'x' }}": set(),
    "{{ A and A }}": {A},
    "{{ A if A and B else 'x' }}": set(),
    "{% if account.owner.name %}{{ account.owner.name }}{% endif %}": set(),
    "{% for one in A if A %}{{ A }}{% endfor %}": {A},
    # Guards that do not guard.
    "{% if A %}x{% endif %}{{ A }}": {A},
    "{% if A %}x{% else %}{{ A }}{% endif %}": {A},
    "{% if A or B %}{{ A }}{% endif %}": {A},
    "{% if A is missing %}{{ A }}{% endif %}": {A},
    "{% if not A %}{{ A }}{% endif %}": {A},
    "{% if not A %}x{% endif %}{{ A }}": {A},
    "{% if A not in ['x'] %}{{ A }}{% endif %}": {A},
    "{% if 'x' not in A %}{{ A }}{% endif %}": {A},
    "{% if A > 3 %}x{% else %}{{ A }}{% endif %}": {A},
    "{% if A | default('x') %}{{ A }}{% endif %}": {A},
    "{% if B %}{{ A }}{% endif %}": {A},
    "{% if account.owner %}{{ account.owner.name }}{% endif %}": {"account.owner.name"},
    "{{ 'x' if B else A }}": {A},
    "{% if A and B is missing %}x{% else %}{{ A }}{% endif %}": {A},
    "{% if 'x' %}{{ A }}{% endif %}": {A},
    "no tag at all": set(),
    "{{ broken": set(),
}


def text(form: str) -> str:
    return form.replace("A", A).replace("B", B)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_form_needs(form):
    assert needs(text(form)) == FORMS[form]


def test_an_address_is_needed_where_its_link_is_shown():
    links = (Link("https://a.example/{{ account.id | urlencode }}", "x", True), Link("{{ event.properties.url | url }}", "y", True))
    html = '<a href="{{ mail.link[0] }}">x</a>{% if event.properties.url %}<a href="{{ mail.link[1] }}">y</a>{% endif %}'
    assert needs_of(Compiled("{{ contact.email }}", html, "", links, frozenset())) == {"account.id", "contact.email"}
    bare = '<a href="{{ mail.link[1] }}">y</a>'
    assert needs_of(Compiled("x", html, bare, links, frozenset())) == {"account.id", "event.properties.url"}


PATHS = ["contact.first_name", "account.name", "account.seats"]
leaf = st.sampled_from([*PATHS, "'x'", "3"])
expression = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or", "==", "!=", "<", "in", "not in", "~", "+"]), inner).map(
            lambda three: f"({three[0]} {three[1]} {three[2]})"
        ),
        inner.map(lambda one: f"(not {one})"),
        inner.map(lambda one: f"({one} | default('d'))"),
        inner.map(lambda one: f"({one} | upper)"),
        inner.map(lambda one: f"({one} is missing)"),
        st.tuples(inner, inner).map(lambda two: f"({two[0]} | default({two[1]}))"),
        st.tuples(inner, inner, inner).map(lambda three: f"({three[0]} if {three[1]} else {three[2]})"),
    ),
    max_leaves=6,
)
template = st.recursive(
    expression.map(lambda one: f"{{{{ {one} }}}}"),
    lambda inner: st.one_of(
        st.tuples(expression, inner, inner).map(lambda t: f"{{% if {t[0]} %}}{t[1]}{{% else %}}{t[2]}{{% endif %}}"),
        st.tuples(expression, inner, expression, inner, inner).map(
            lambda t: f"{{% if {t[0]} %}}{t[1]}{{% elif {t[2]} %}}{t[3]}{{% endif %}}{t[4]}"
        ),
        st.tuples(inner, inner).map("".join),
    ),
    max_leaves=4,
)


@settings(max_examples=600, deadline=None)
@given(template, st.sets(st.sampled_from(PATHS)))
def test_whoever_has_what_is_needed_is_never_skipped_for_a_missing_value(source, have):
    """The proof holds: rendered with exactly what is needed, and whatever else, no template finds a hole."""
    if check(source).flaws:
        return
    given_values = {"contact.first_name": "Mara", "account.name": "Birch", "account.seats": 3}
    values: dict = {}
    for path in needs(source) | have:
        root, _, name = path.partition(".")
        values.setdefault(root, {})[name] = given_values[path]
    try:
        Composer().render(1, Compiled("s", source, "", (), frozenset()), values, addresses(), {}, "")
    except RenderSkip as skip:
        assert skip.reason != "missing_value", (source, skip.evidence)
