"""The page of a report: elements that escape what they are given, the style, and the frame around the sections."""

from __future__ import annotations

import html
from collections.abc import Sequence

VOID = ("img", "meta", "br", "hr", "rect", "circle", "line", "path", "polyline")
NOT_KNOWN, MINUS = "–", "\u2212"

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f5f7f9;--ink:#1b2126;--soft:#55606a;--rule:#d5dbe1;
--right:#1f6feb;--wrong:#b45309;--second:#0f766e;--on:#fff;--note:#fff6e5;--note-rule:#d9940a}
@media (prefers-color-scheme:dark){:root{--paper:#14181c;--card:#1d2329;--ink:#e8ecf0;--soft:#a4b0bb;--rule:#39434c;
--right:#6cb0ff;--wrong:#f3a548;--second:#4fd1bd;--on:#0b0f13;--note:#2d2412;--note-rule:#d9940a}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans",sans-serif;overflow-wrap:break-word}
main{max-width:1080px;margin:0 auto;padding:24px 20px 48px}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 4px;font-weight:650}
h2{font-size:1.25rem;line-height:1.3;margin:44px 0 10px;padding-top:14px;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:22px 0 6px}
p,ul{margin:8px 0;max-width:72ch}
ul{padding-left:1.2em}
li{margin:3px 0}
a{color:var(--right)}
summary{cursor:pointer;margin:8px 0}
.soft,figcaption{color:var(--soft);font-size:.92rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:14px;margin:18px 0}
.figures div{background:var(--card);border-radius:10px;padding:14px 18px}
.figures b{display:block;font-size:2.3rem;line-height:1.15;font-weight:650;font-variant-numeric:tabular-nums}
.figures span{display:block}
.note{background:var(--note);border-left:4px solid var(--note-rule);border-radius:0 8px 8px 0;padding:8px 16px;
margin:16px 0}
.note h3{margin:4px 0}
.maps{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));gap:16px;margin:14px 0}
figure{margin:0}
.maps img{display:block;width:100%;height:auto;border-radius:6px;background:var(--card)}
figcaption{margin-top:6px}
.locator{display:flex;gap:14px;align-items:flex-start;flex-wrap:wrap}
.locator img{max-width:180px;height:auto;border-radius:4px}
.locator figcaption{flex:1 1 240px;margin:0}
.legend{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:6px 18px;max-width:none}
.swatch{display:inline-block;width:14px;height:14px;border-radius:3px;border:1px solid var(--soft);
margin-right:7px;vertical-align:-2px;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.ramp{display:inline-block;width:120px;height:12px;border-radius:3px;margin:0 7px;vertical-align:-1px;
background:linear-gradient(90deg,#440154,#3b528b,#21918c,#5ec962,#fde725);print-color-adjust:exact;
-webkit-print-color-adjust:exact}
.wide{overflow-x:auto;margin:12px 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.94rem}
caption{text-align:left;color:var(--soft);font-size:.92rem;padding-bottom:6px}
th,td{text-align:right;padding:6px 10px;border-bottom:1px solid var(--rule);vertical-align:top}
thead th,thead th:first-child{font-weight:600}
thead th{border-bottom:2px solid var(--rule);font-weight:600;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;padding-left:0;font-weight:500;min-width:8em}
td.text,th.text{text-align:left}
td small{display:block;color:var(--soft);white-space:nowrap}
td.text small{white-space:normal}
tr.reason td{border-bottom:1px solid var(--rule);padding-top:0;text-align:left;color:var(--soft);font-weight:400}
tr.reason span{display:block;position:sticky;left:0;max-width:min(72ch,calc(100vw - 44px))}
tr.has-reason th,tr.has-reason td{border-bottom:0}
dl{display:grid;grid-template-columns:minmax(9em,max-content) 1fr;gap:4px 20px;margin:12px 0}
dt{color:var(--soft)}
dd{margin:0;min-width:0}
code,pre{font:.88rem/1.5 ui-monospace,"SF Mono",Consolas,"DejaVu Sans Mono",monospace}
pre{background:var(--card);border-radius:8px;padding:14px 16px;overflow-x:auto;white-space:pre-wrap;
overflow-wrap:anywhere}
dd code{overflow-wrap:anywhere}
svg{display:block;height:auto;max-width:100%;font:13px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.wide svg{max-width:none}
svg text{fill:var(--ink)}
svg .soft{fill:var(--soft);font-size:13px}
svg .rule{stroke:var(--rule);fill:none}
svg .axis{stroke:var(--soft);fill:none}
svg .cell{stroke:var(--rule)}
svg .hit{stroke:var(--ink);stroke-width:1.5}
svg .right{fill:var(--right)}svg .wrong{fill:var(--wrong)}svg .second{fill:var(--second)}
svg .line-right{stroke:var(--right);fill:none;stroke-width:2.2}
svg .line-wrong{stroke:var(--wrong);fill:none;stroke-width:2.2}
svg .line-second{stroke:var(--second);fill:none;stroke-width:2.2}
svg .hollow{fill:var(--paper)}
svg .on{fill:var(--on)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:20px;margin:12px 0}
footer{margin-top:44px;border-top:1px solid var(--rule);padding-top:12px;color:var(--soft);font-size:.88rem}
@media (max-width:520px){main{padding:16px 14px 32px}h1{font-size:1.5rem}dl{grid-template-columns:1fr;gap:0}
dd{margin-bottom:8px}th,td{padding:6px 7px}}
@media print{:root{color-scheme:light;--paper:#fff;--card:#f5f7f9;--ink:#000;--soft:#444;--rule:#bbb;--right:#1f6feb;
--wrong:#b45309;--second:#0f766e;--on:#fff;--note:#fff6e5}main{max-width:none;padding:0}body{font-size:10.5pt}
figure,table,pre,.note,.figures{break-inside:avoid}h2{break-after:avoid;margin-top:22px}.wide{overflow:visible}
.wide svg{max-width:100%}.maps{grid-template-columns:repeat(3,1fr)}}
"""


class Markup(str):
    """Text that is HTML already; every other string is escaped when it becomes part of an element."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: object) -> Markup:
    """An element. `_` at the end of an attribute's name is cut off, other `_` become `-`; None leaves it out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Sequence[str]) -> Markup:
    """Elements and texts in a row."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(child) for child in children))


def section(title: str, *children: str) -> Markup:
    """A section with its heading; empty where it has nothing to say."""
    body = join(children)
    return tag("section", tag("h2", title), body) if body else Markup("")


def bullets(texts: Sequence[str], class_: str | None = None) -> Markup:
    """A list; empty where there is nothing in it."""
    return tag("ul", *(tag("li", text) for text in texts), class_=class_) if texts else Markup("")


def facts(rows: Sequence[tuple[str, str]]) -> Markup:
    """Names with their values; those without a value are left out."""
    kept = [(name, value) for name, value in rows if value]
    return tag("dl", *(part for name, value in kept for part in (tag("dt", name), tag("dd", value))))


def table(caption: str, head: Sequence[str], rows: Sequence[Markup], texts: Sequence[int] = ()) -> Markup:
    """A table that scrolls by itself on a narrow screen.

    Args:
        rows: `tr` elements.
        texts: positions of the columns that hold text; the others hold numbers.
    """
    columns = (tag("th", name, scope="col", class_="text" if at in texts else None) for at, name in enumerate(head))
    whole = tag("table", tag("caption", caption), tag("thead", tag("tr", *columns)), tag("tbody", *rows))
    return tag("div", whole, class_="wide", tabindex=0, role="region", aria_label=caption)


def document(title: str, *sections: str) -> str:
    """The whole file."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *sections)), lang='en')}\n"


# The file shows itself and loads nothing, whatever a name in it may hold.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash where it is not known."""
    return NOT_KNOWN if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float) -> str:
    """A difference."""
    return f"{value:+.2f}".replace("-", MINUS)


def percent(share: float | None) -> str:
    """A share 0..1 in percent, or a dash; a small one is not said to be nothing, nor a large one to be all."""
    if share is None:
        return NOT_KNOWN
    if 0 < share < 0.005:
        return "<1 %"
    return ">99 %" if 0.995 <= share < 1 else f"{share * 100:.0f} %"


def thousands(count: int | None) -> str:
    """A count with thin spaces, or a dash."""
    return NOT_KNOWN if count is None else f"{count:,}".replace(",", "\u202f")
