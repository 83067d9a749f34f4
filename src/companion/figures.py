"""The look of the figures: one style sheet, one palette, and formulas with sliders.

Colours are Okabe and Ito's, for any colour vision. A figure is 5 inches wide with 11-point text, so
that on a telephone's 350 pixels its letters are still about 10 pixels high.
"""

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import sympy as sp
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib_inline.backend_inline import set_matplotlib_formats
from numpy.typing import ArrayLike

from companion.checks import Array, require
from companion.theory import landscape
from companion.theory.programs import CALLS

NAL, MAML = "#0072B2", "#D55E00"
EASY, HARD = "#009E73", "#CC79A7"
INK, FAINT = "#333333", "#999999"
MAP = "cividis"

_STYLE = {"figure.figsize": (5.0, 3.4), "figure.dpi": 160, "figure.facecolor": "white",
          "figure.constrained_layout.use": True, "savefig.bbox": None, "font.size": 11,
          "axes.titlesize": 11, "axes.labelsize": 11, "legend.fontsize": 10, "xtick.labelsize": 10,
          "ytick.labelsize": 10, "axes.spines.top": False, "axes.spines.right": False,
          "axes.edgecolor": INK, "axes.grid": True, "grid.color": "#e5e5e5", "grid.linewidth": 0.6,
          "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.8,
          "lines.markersize": 5, "errorbar.capsize": 2.5, "image.cmap": MAP}


def use_style() -> None:
    """Set the book's style for all later figures: PNG, the same bytes for the same data."""
    mpl.rcParams.update(_STYLE)  # type: ignore[arg-type]
    set_matplotlib_formats("png", bbox_inches=None)


def band(ax: Axes, x: ArrayLike, runs: ArrayLike, *, color: str, label: str,
         dash: str = "-") -> None:
    """The median of ``runs`` [run, x] as a line, their 10th to 90th percentile as a band."""
    low, middle, high = np.percentile(np.asarray(runs), [10, 50, 90], axis=0)
    ax.plot(x, middle, dash, color=color, label=label)
    ax.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def ratio_map(ax: Axes, x: Array, y: Array, ratio: Array,
              label: str = "risk of NAL / risk of MAML") -> None:
    """A map of ``ratio`` [y, x] >= 1 on a logarithmic colour scale, with its bar."""
    image = ax.pcolormesh(x, y, ratio, norm=LogNorm(1, ratio.max()), rasterized=True)
    ax.grid(False)
    bar = plt.colorbar(image, ax=ax, label=label)
    ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 30, 50, 100) if tick <= ratio.max()]
    bar.set_ticks(ticks, labels=[str(tick) for tick in ticks])
    bar.minorticks_off()


def ceiling(ax: Axes, h: Array) -> None:
    """The most that MAML can gain over the hardness spread ``h`` [point], logarithmic axes: the
    curve (1 + h)^2/(4h) of :func:`companion.theory.landscape.ceiling`, what is above it shaded.
    Derived in book/landscape/gap."""
    curve = landscape.ceiling(h)
    ax.plot(h, curve, color=INK, label="ceiling")
    ax.fill_between(h, curve, curve.max(), color=FAINT, alpha=0.2, linewidth=0)
    ax.set(xscale="log", yscale="log", xlabel="hardness spread $h$",
           ylabel="risk of NAL / risk of MAML")
    ax.yaxis.set_major_formatter("{x:g}")


class Knob(NamedTuple):
    """A slider: its least, greatest and starting value, its name, and its ``scale``: "linear";
    "log"; "whole"; or "support", whole and logarithmic with infinity at its end, of which the
    symbol is the inverse."""

    least: float
    most: float
    start: float
    name: str
    scale: str = "linear"


def explorer(program: Mapping[str, sp.Expr], knobs: Mapping[str, Knob],
             presets: Mapping[str, Mapping[str, float]], *, ident: str, view: str) -> HTML:
    """Derived formulas that the reader's browser evaluates and draws as its knobs move.

    ``program``: names and expressions, each in the knobs and in the names before it (see
    :mod:`companion.theory.programs`); ``knobs``: by symbol; ``presets``: by name, values of some
    knobs, the others as they start (a support may be math.inf); ``ident``: the element's id;
    ``view``: which picture of the page's script, "mixture" or "preconditioner". ValueError: a
    symbol without a value, a preset out of range, or what is not arithmetic."""
    known = set(knobs)
    lines = []
    for name, expression in program.items():
        free = sorted({symbol.name for symbol in expression.free_symbols} - known)
        require(not free, f"every symbol of {name}", "be a knob or an earlier name", free,
                "substitute them")
        try:
            code = sp.jscode(expression, user_functions={call: call for call in CALLS})
        except NotImplementedError as error:
            raise ValueError(f"{name} must be plain arithmetic, got {expression}; rewrite it"
                             ) from error
        lines.append([name, code])
        known.add(name)
    for title, values in presets.items():
        for symbol, value in values.items():
            knob = knobs[symbol]
            inside = knob.least <= value <= knob.most or (knob.scale, value) == ("support",
                                                                                 math.inf)
            require(inside, f"{symbol} of {title!r}", f"lie in [{knob.least}, {knob.most}]", value,
                    "a slider cannot show it")
    spec = {"program": lines, "view": view,
            "knobs": {symbol: {**knob._asdict(), "start": _number(knob.start)}
                      for symbol, knob in knobs.items()},
            "presets": {title: {symbol: _number(value) for symbol, value in values.items()}
                        for title, values in presets.items()}}
    text = json.dumps(spec, allow_nan=False).replace("<", "\\u003c")
    return HTML(f'<div class="book-explorer" id="{html.escape(ident)}"><script type="application/'
                f'json">{text}</script><noscript>This picture is drawn by the page\'s script; the '
                "rendered book shows it with its sliders.</noscript></div>")


def _number(value: float) -> float | str:
    return "inf" if math.isinf(value) else value


def table(columns: Mapping[str, Sequence[object]], *, caption: str) -> HTML:
    """A table of ready-made texts, one column a name, under its ``caption``; on a narrow screen the
    page's script stacks the cells of a line, or scrolls it in its box. ρ_E, v_H and their like get
    their index below the line."""
    frame = pd.DataFrame({name: list(map(str, values)) for name, values in columns.items()})
    head, rest = frame.to_html(index=False, border=0).split("\n", 1)
    made = f"{head}\n  <caption>{html.escape(caption)}</caption>\n{rest}"
    lowered = re.sub(r"([ρvαr])_([EHNM]|own|rel)\b", r"\1<sub>\2</sub>", made)
    return HTML(f'<div class="book-table">{lowered}</div>')


def digits(value: float, count: int = 2) -> str:
    """A number to ``count`` digits as readers write it, 1.9·10⁻⁶ rather than 1.9e-06."""
    mantissa, _, power = f"{value:.{count}g}".partition("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")) if power else ""
    return f"{mantissa}·10{raised}" if raised else mantissa
