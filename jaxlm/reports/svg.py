"""Figures as inline SVG in the colors of the page, with selectable text."""

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

INK = "#010203"  # replaced by the text color of the page
SIZE = (4.6, 3.4)  # inches: legible at the width of a phone

Curve = tuple[str, Sequence[float], Sequence[float]]  # label, x, y


class Figure(NamedTuple):
    """A drawing as SVG, and the text below it."""

    svg: str
    caption: str


def draw(name: str, description: str, plot: Callable[[Any], None], size: tuple[float, float] = SIZE) -> str:
    """Returns the SVG of a figure.

    Args:
      name: distinguishes it from the other figures of a page.
      description: text for screen readers.
      plot: draws into the axes it is given.
      size: width and height in inches.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    colors = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = dict.fromkeys(colors, INK) | {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "legend.framealpha": 0.0,
    }
    with pyplot.rc_context(settings):
        made, axes = pyplot.subplots(figsize=size, layout="constrained")
        plot(axes)
        file = io.StringIO()
        made.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(made)
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # matplotlib's names, the same in every figure
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1).replace(INK, "currentColor")


def curves(name: str, title: str, x_label: str, lines: Sequence[Curve], log: bool = False) -> Figure:
    """Returns a figure of curves, described by the last value of each."""
    ends = "; ".join(f"{label} ends at {y[-1]:,.4g}" for label, _, y in lines if len(y))

    def plot(axes: Any) -> None:
        for n, (label, x, y) in enumerate(lines):
            style = ("-", "--", "-.", ":")[n % 4]  # not by color alone
            axes.plot(x, y, style, marker="o" if len(x) < 30 else None, markersize=3, label=label)
        axes.set(title=title, xlabel=x_label)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_minor_formatter("{x:,.0f}")
        axes.grid(alpha=0.3)
        if lines:
            axes.legend()

    return Figure(draw(name, f"{title}: {ends}.", plot), f"{title[0].upper()}{title[1:]}, by {x_label}.")


def word_map(name: str, description: str, words: Sequence[str], points: Any) -> str:
    """Returns a map of words at points `[N, 2]`."""

    def plot(axes: Any) -> None:
        axes.scatter(points[:, 0], points[:, 1], s=2, alpha=0.4)
        for word, (x, y) in zip(words, points, strict=True):
            axes.text(x, y, word.replace("$", r"\$"), fontsize=7)
        axes.set(xticks=[], yticks=[])

    return draw(name, description, plot, (8.0, 6.0))
