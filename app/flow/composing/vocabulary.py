"""The MJML components and the HTML that a template may use: the MJML compiler itself accepts anything (X-12, X-16)."""

from __future__ import annotations

_PADDING = "padding padding-top padding-right padding-bottom padding-left"
_FONT = "font-family font-size font-style font-weight letter-spacing line-height text-decoration text-transform color align"
_BORDER = "border border-top border-right border-bottom border-left border-radius"
_INNER = "inner-border inner-border-top inner-border-right inner-border-bottom inner-border-left inner-border-radius inner-background-color"
_BACK = "background-color background-url background-repeat background-size background-position background-position-x background-position-y"
_LINK = "href target rel title name data-no-track"

# component: (its attributes, what may stand in it). `text` and `html` are contents that MJML leaves alone.
_COMPONENTS: dict[str, tuple[str, str]] = {
    "mjml": ("lang dir owa", "mj-head mj-body"),
    "mj-head": ("", "mj-attributes mj-breakpoint mj-preview mj-title mj-style mj-raw mj-include"),
    "mj-attributes": ("", "mj-all mj-class *"),
    "mj-breakpoint": ("width", ""),
    "mj-preview": ("", "text"),
    "mj-title": ("", "text"),
    "mj-style": ("", "css"),
    "mj-raw": ("position", "html"),
    "mj-include": ("path", ""),
    "mj-body": ("background-color width", "mj-section mj-wrapper mj-hero mj-raw mj-include"),
    "mj-wrapper": (f"{_BACK} {_BORDER} {_PADDING} full-width text-align gap", "mj-section mj-hero mj-raw mj-include"),
    "mj-section": (f"{_BACK} {_BORDER} {_PADDING} direction full-width text-align", "mj-column mj-group mj-raw mj-include"),
    "mj-group": ("background-color direction vertical-align width", "mj-column mj-raw mj-include"),
    "mj-column": (
        f"background-color {_BORDER} {_INNER} {_PADDING} direction vertical-align width",
        "mj-text mj-button mj-image mj-divider mj-spacer mj-table mj-raw mj-include",
    ),
    "mj-hero": (
        f"{_BACK} {_PADDING} border-radius background-height background-width height mode vertical-align width "
        "inner-background-color inner-padding",
        "mj-text mj-button mj-image mj-divider mj-spacer mj-table mj-raw mj-include",
    ),
    "mj-text": (f"{_FONT} {_PADDING} container-background-color height vertical-align", "html"),
    "mj-button": (
        f"{_FONT} {_PADDING} {_BORDER} {_LINK} background-color container-background-color inner-padding height text-align "
        "vertical-align width",
        "html",
    ),
    "mj-image": (
        f"{_PADDING} {_BORDER} {_LINK} align alt container-background-color fluid-on-mobile height max-height sizes src usemap width",
        "",
    ),
    "mj-divider": (f"{_PADDING} align border-color border-style border-width container-background-color width", ""),
    "mj-spacer": (f"{_PADDING} container-background-color height", ""),
    "mj-table": (f"{_FONT} {_PADDING} border cellpadding cellspacing container-background-color role table-layout width", "html"),
}
COMPONENTS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    name: (frozenset(attributes.split()) | {"css-class", "mj-class"}, frozenset(children.split()))
    for name, (attributes, children) in _COMPONENTS.items()
}
ANY_ATTRIBUTE = frozenset().union(*(attributes for attributes, _ in COMPONENTS.values()))
LEAVES = frozenset(name for name, (_, children) in COMPONENTS.items() if children & {"text", "html", "css"})
HOISTED = frozenset({"mj-preview", "mj-title", "mj-style"})  # from the top of a template into the layout's head

# Known to MJML, but they fetch pictures from hosts of others or need what mail programs do not have.
REFUSED = {
    "mj-accordion": "it fetches pictures from another host and few mail programs open it",
    "mj-carousel": "it fetches pictures from another host and few mail programs turn it",
    "mj-social": "it fetches pictures from another host; write links in mj-text",
    "mj-navbar": "it needs what few mail programs have; write links in mj-text",
    "mj-html-attributes": "the MJML compiler does not know it",
    "mj-font": "it fetches fonts from another host",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


HTML_VOID = _words("br hr img col meta wbr")
HTML_TAGS = _words(
    "a abbr b blockquote br caption center cite code col colgroup dd del dfn div dl dt em figcaption figure font h1 h2 h3 h4 h5 h6 hr i "
    "img ins kbd li mark ol p pre q s samp small span strike strong sub sup table tbody td tfoot th thead time tr u ul var wbr"
)
HTML_FORBIDDEN = _words(
    "script style form input button select textarea iframe frame object embed applet base link meta svg math video audio template"
)
HTML_ATTRIBUTES = _words(
    "href src alt title style class id width height align valign bgcolor border cellpadding cellspacing role lang dir colspan rowspan "
    "target rel name color face size start type scope headers datetime summary"
)
URL_ATTRIBUTES = _words("href src background-url")
WORDED_ATTRIBUTES = _words("alt title")  # any merge tag may stand in them, as in aria-*
