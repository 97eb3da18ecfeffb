"""A page that needs nothing else: the parts that reports of runs and of studies are made of.

Promises: all text given is escaped; no scripts, no links to the outside, no external pictures or
fonts. Standard library only.
"""

import base64
from collections.abc import Sequence
from html import escape


def page(title: str, sections: Sequence[str]) -> str:
    """A whole HTML document of sections that are HTML already."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """A part with a heading; nothing where the body, which is HTML, is empty."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Headings and cells of text."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, one under the other."""
    if not rows:
        return ""
    body = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in rows)
    return f"<dl>{body}</dl>"


def picture(title: str, svg: bytes) -> str:
    """A drawing inside the page."""
    data = base64.b64encode(svg).decode("ascii")
    return f'<figure><img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}"></figure>'


_STYLE = """
:root{color-scheme:light;--ink:#30343b;--soft:#6b7280;--line:#e6e8eb;--paper:#fff;--ground:#f6f7f8}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 48px}
h1{margin:0;font-size:26px;font-weight:650}
h2{margin:0 0 12px;font-size:16px;font-weight:650}
h3{margin:12px 0 4px;font-size:13px;font-weight:600;color:var(--soft)}
header p,footer,section p{margin:4px 0 0;color:var(--soft);font-size:13px}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;
padding:18px 20px;margin-top:16px}
.pill{display:inline-block;vertical-align:middle;padding:2px 10px;border-radius:999px;
font-size:12px;font-weight:600}
.good{background:#e3f1e7;color:#2d6a41}.bad{background:#f8e4e1;color:#963a2f}
.calm{background:#e5edf5;color:#2f5d8a}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;
margin-top:18px}
.tile{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.tile span,.tile small{display:block;color:var(--soft);font-size:12px;min-height:18px}
.tile b{font-size:22px;font-weight:650;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:14px 22px}
figure{margin:0}img{width:100%;height:auto;display:block}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:0 16px;
align-items:start}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{font-weight:600;color:var(--soft);font-size:12px;vertical-align:bottom}
th,td{text-align:right;padding:6px 10px;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;padding-left:0;white-space:nowrap}
.compared th:last-child,.compared td:last-child{text-align:left;padding-left:28px}
tbody tr:last-child td{border-bottom:0}
dl{display:grid;grid-template-columns:minmax(140px,max-content) 1fr;gap:4px 20px;margin:8px 0 0;
font-size:14px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
pre{margin:0;padding:12px 14px;background:var(--ground);border-radius:8px;overflow-x:auto;
font:13px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--soft)}details pre{margin-top:10px}
footer{margin-top:20px}
@media print{body{background:#fff}section{break-inside:avoid}}
"""
