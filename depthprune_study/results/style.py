"""One look for every figure: fonts, sizes, one colour and one marker an idea; PNG and SVG."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image
from PIL.PngImagePlugin import PngInfo

WIDTH = 6.4  # inches; a phone shows it at 390 px, where 10 points are 8.5 px
DPI = 192  # twice a screen's 96
SMALL, NORMAL, LARGE = 9.0, 10.0, 11.0  # points; nothing is smaller or larger
INK, SOFT, FAINT = "#222222", "#5A5A5A", "#DDDDDD"  # words and layers; remarks; grids

LOOK = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Geneva", "Arial", "sans-serif"],
    "font.size": NORMAL,
    "axes.labelsize": SMALL,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": "#EBEBEB",
    "text.color": INK,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "depthprune",
    "path.simplify": False,
}

# idea -> colour and marker; told apart by lightness and shape too, for print in grey
IDEAS = {
    "whole": ("#111111", "s"),
    "healed": ("#0A4C94", "o"),
    "cut": ("#D2492A", "X"),
    "control": ("#8452B8", "D"),
    "rival": ("#3C9172", "^"),
    "text": ("#D77BB0", "P"),
    "refitted": ("#E8A320", "v"),
    "other": ("#5A5A5A", "s"),
}


def styled(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Runs `draw` under LOOK, and leaves matplotlib's own settings as they were."""

    @wraps(draw)
    def drawn(*args: Any, **more: Any) -> Any:
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **LOOK}):
            return draw(*args, **more)

    return drawn


@styled
def blank(title: str, height: float) -> Figure:
    """A figure of `height` inches below its title: bold, at the left, wrapped to the width."""
    lines = wrapped(title, WIDTH - 0.2)
    figure = Figure(figsize=(WIDTH, height + 0.2 * len(lines)), layout="constrained")
    heading = {"x": 0.012, "ha": "left", "fontsize": LARGE, "fontweight": "bold"}
    figure.suptitle("\n".join(lines), **heading)
    return figure


@styled
def new_figure(title: str, height: float, **subplots: Any) -> tuple[Figure, Any]:
    """`blank` with its axes."""
    figure = blank(title, height)
    return figure, figure.subplots(**subplots)


def readable(colour: str) -> str:
    """The colour, dark enough for words on white (contrast of 4.5 to 1, as WCAG asks)."""
    rgb = np.array(to_rgb(colour))

    def contrast(values: np.ndarray) -> float:
        linear = np.where(values <= 0.03928, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return 1.05 / (float(linear @ (0.2126, 0.7152, 0.0722)) + 0.05)

    while contrast(rgb) < 4.5:
        rgb = rgb * 0.96
    return to_hex(rgb)


def wrapped(text: str, inches: float, *, size: float = LARGE, weight: str = "bold") -> list[str]:
    """The text in lines that are at most `inches` wide, as they are drawn."""
    renderer = FigureCanvasAgg(Figure(dpi=100)).get_renderer()
    font = FontProperties(size=size, weight=weight)

    def width(line: str) -> float:
        return renderer.get_text_width_height_descent(line, font, False)[0] / 100

    def filled(limit: float) -> list[str]:
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if width(longer) <= limit or not lines[-1]:
                lines[-1] = longer
            else:
                lines.append(word)
        return lines

    lines = filled(inches)
    for share in (0.6, 0.7, 0.8, 0.9):  # as few lines, but none with a single word
        if len(lines) > 1 and len(balanced := filled(share * inches)) == len(lines):
            return balanced
    return lines


@styled
def png(figure: Figure, *, sources: Mapping[str, Any]) -> bytes:
    """The figure at twice a screen's resolution; `sources` lie in it as JSON (a tEXt chunk)."""
    _settle(figure)
    small = io.BytesIO()
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    figure.set_dpi(100)
    note = PngInfo()
    note.add_text("sources", json.dumps(dict(sources), sort_keys=True))
    # 256 colours are a third of the bytes; this method keeps rare colours, such as one marker's
    image = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True, pnginfo=note, dpi=(DPI, DPI))
    return small.getvalue()


def sources_in(data: bytes) -> dict[str, Any]:
    """What `png` noted in a file; empty where there is no note."""
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
    """Fixes the layout, so that PNG and SVG have one and a second call changes nothing."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.draw_without_rendering()  # axes of a fixed aspect settle in the second pass
        figure.set_layout_engine("none")
