"""Pieces of an HTML page that needs nothing else: readable on a phone, in the dark, printed and read aloud."""

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --back: #fff; --line: #c8c8c8; --heat: 200, 60, 0; }
@media screen and (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --back: #16181c; --line: #4a4f57; --heat: 255, 120, 40; } }
body { color: var(--text); background: var(--back); font: 1rem/1.5 system-ui, sans-serif; max-width: 70rem;
  margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; }
svg { width: 100%; height: auto; }
mark { color: inherit; border-radius: .2rem; padding: 0 .1rem; }
blockquote { white-space: pre-wrap; border-left: .3rem solid var(--line); margin: 1rem 0; padding-left: 1rem;
  overflow-wrap: anywhere; }
@media print { body { max-width: none; font-size: 10pt; } h2, figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } mark { print-color-adjust: exact; } }
"""
HEAT = 20.0  # bits of surprisal with the strongest color


class Markup(str):
    """HTML that is ready to stand in a page; any other string is plain text."""


Cell = str | int | float | None


def page(title: str, body: Iterable[str]) -> str:
    """Returns a whole HTML document."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, *content: str) -> str:
    """Returns a section of the page; text in it must be escaped already."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(content) + "\n</section>"


def paragraph(text: str) -> str:
    """Returns a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def quotation(text: str) -> str:
    """Returns a text as it is, with its line ends."""
    return f"<blockquote>{escape(text)}</blockquote>"


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Returns a table of plain text, or `Markup`. The first cell of a row is its heading."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{format_cell(first)}</th>' + "".join(map(_cell, others)) + "</tr>\n"
        for first, *others in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def _cell(value: Cell) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    kind = ' class="number"' if is_number or str(value).endswith("%") else ""
    return f"<td{kind}>{format_cell(value)}</td>"


def format_cell(value: Cell) -> str:
    """Returns a value for people: numbers with separators and four digits, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escape(str(value))


def figure(svg: str, caption: str) -> str:
    """Returns a figure with its caption."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def figures(items: Iterable[str]) -> str:
    """Returns figures side by side, or below each other on a narrow screen."""
    return '<div class="figures">\n' + "\n".join(items) + "\n</div>"


def heat(word: str, bits: float) -> str:
    """Returns a word on a background that is stronger the more surprising it is."""
    strength = min(max(bits / HEAT, 0.0), 1.0) * 0.75
    style = f"background: rgba(var(--heat), {strength:.2f})"
    return f'<mark style="{style}" title="{bits:.1f} bits">{escape(word)}</mark>'
