"""One style for all figures: fonts, sizes, one colour and marker per idea; PNG and SVG."""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

WIDTH = 6.0  # inches; a phone shows it at 390 px, where 10 points are 9 px
DPI = 192  # twice a screen's 96
SMALL, NORMAL, LARGE = 9.0, 10.0, 11.0  # points; nothing is smaller or larger
A_LINE, A_TITLE = 86, 67  # characters that fit the width, small and large
INK, SOFT, FAINT = "#222222", "#5A5A5A", "#E4E4E4"  # words and layers; remarks; grids

LOOK = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Geneva", "Arial", "sans-serif"],
    "font.size": NORMAL,
    "axes.titlesize": SMALL,
    "axes.titlecolor": SOFT,
    "axes.titlelocation": "left",
    "axes.labelsize": SMALL,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": FAINT,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "depthprune",
}

# idea -> colour, dark enough for text on white, and marker, which distinguishes ideas in grey
IDEAS = {
    "whole": ("#111111", "s"),
    "healed": ("#0A4C94", "o"),
    "cut": ("#C2391B", "X"),
    "control": ("#7A45B0", "D"),
    "rival": ("#2A7A5F", "^"),
    "text": ("#B0417F", "P"),
    "refitted": ("#946200", "v"),
    "other": ("#5A5A5A", "h"),
}


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Runs `draw` under LOOK, and leaves matplotlib's own settings as they were."""

    @wraps(draw)
    def drawn(*args: Any, **more: Any) -> Any:
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **LOOK}):
            return draw(*args, **more)

    return drawn


def new_figure(title: str, height: float, **subplots: Any) -> tuple[Figure, Any]:
    """Axes of `height` inches below a title: bold, at the left, wrapped to the width."""
    lines = textwrap.wrap(title, A_TITLE)
    figure = Figure(figsize=(WIDTH, height + 0.2 * len(lines)), layout="constrained")
    heading = {"x": 0.012, "ha": "left", "fontsize": LARGE, "fontweight": "bold"}
    figure.suptitle("\n".join(lines), **heading)
    return figure, figure.subplots(**subplots)


def remark(ax: Axes, text: str) -> None:
    """Small type at the figure's foot."""
    lines = "\n".join(textwrap.wrap(text, A_LINE))
    ax.figure.supxlabel(lines, x=0.012, ha="left", fontsize=SMALL, color=SOFT)


@styled
def png(figure: Figure, *, sources: Mapping[str, Any]) -> bytes:
    """The figure at twice a screen's resolution, with `sources` as JSON in a tEXt chunk."""
    _settle(figure)
    drawn, small, note = io.BytesIO(), io.BytesIO(), PngInfo()
    figure.savefig(drawn, format="png", dpi=DPI)
    # 256 colours take a third of the bytes; this method keeps rare colours, such as a marker's
    image = Image.open(drawn).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=0)
    note.add_text("sources", json.dumps(dict(sources), sort_keys=True))
    image.save(small, format="png", optimize=True, pnginfo=note, dpi=(DPI, DPI))
    return small.getvalue()


def sources_in(data: bytes) -> dict[str, Any]:
    """The sources that `png` stored in a file; empty without them."""
    return json.loads(Image.open(io.BytesIO(data)).info.get("sources", "{}"))


@styled
def svg(figure: Figure) -> str:
    """The figure as SVG: text stays text, its label is the alt text; equal figures, equal bytes."""
    _settle(figure)
    out = io.StringIO()
    figure.savefig(out, format="svg", dpi=DPI, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # several figures share a page
    return text.replace("<svg ", f'<svg role="img" aria-label={quoteattr(figure.get_label())} ', 1)


def _settle(figure: Figure) -> None:
    """Fixes the layout, so that PNG and SVG share it and a second call changes nothing."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.draw_without_rendering()  # axes of a fixed aspect settle in the second pass
        figure.set_layout_engine("none")
