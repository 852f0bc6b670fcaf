"""Renders the report from its template: one HTML file for screens, phones, dark mode, print and screen readers."""

from collections.abc import Sequence

MOST_BITS = 20.0  # surprisal with the strongest color

Words = Sequence[tuple[str, float]]  # a word and its surprisal in bits
Cell = str | int | float | Words | None
Rows = Sequence[Sequence[Cell]]  # the first cell of a row is its heading


def render(**values: object) -> str:
    """Returns report.html.jinja, filled with values."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("jaxlm", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": format_cell, "strength": _strength}
    environment.tests["numeric"] = _is_numeric
    return environment.get_template("report.html.jinja").render(values)


def format_cell(value: str | int | float | None) -> str:
    """Returns a value for people: numbers with separators and four digits, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _is_numeric(value: Cell) -> bool:
    """Returns whether a cell is aligned as a number."""
    return (isinstance(value, int | float) and not isinstance(value, bool)) or str(value).endswith("%")


def _strength(bits: float) -> str:
    """Returns the opacity of a word's background."""
    return f"{min(max(bits / MOST_BITS, 0.0), 1.0) * 0.75:.2f}"
