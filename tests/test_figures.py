import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import sympy as sp

from companion import figures

x, k, q = sp.symbols("x k q")


def spec(html: str) -> dict:
    return json.loads(re.findall(r"<script[^>]*>(.*?)</script>", html)[0])


def test_sliders_carry_the_expression() -> None:
    html = figures.sliders(k * x**2 / 2, (x, 0, 1, "x"), {k: (1, 3, 2, "slope <k>")}, ident="one",
                           label="y").data
    found = spec(html)
    assert found["args"] == ["x", "k"]
    assert found["js"] == "(1/2)*k*Math.pow(x, 2)"
    assert found["knobs"] == [[1, 3, 2, "slope <k>"]]
    assert "<k>" not in html


def test_sliders_refuse_what_a_page_could_not_draw() -> None:
    with pytest.raises(ValueError, match=r"every symbol must be the axis or a knob, got \['q'\]"):
        figures.sliders(k * x + q, (x, 0, 1, "x"), {k: (1, 3, 2, "k")}, ident="one", label="y")
    with pytest.raises(ValueError, match="plain arithmetic"):
        figures.sliders(sp.zeta(x), (x, 2, 3, "x"), {}, ident="one", label="y")


def test_table_shows_ready_made_texts() -> None:
    html = figures.table({"m": ["∞", 20], "ratio": ["7.27", "1.02"]}, caption="Few < many.").data
    assert re.findall(r"<td>(.*?)</td>", html) == ["∞", "7.27", "20", "1.02"]
    assert re.search(r"<table[^>]*>\s*<caption>Few &lt; many.</caption>\s*<thead>", html)


def test_band_is_the_median_between_the_deciles() -> None:
    runs = np.arange(101.0)[:, None] + np.array([[0.0, 10.0]])
    fig, ax = plt.subplots()
    figures.band(ax, [1, 2], runs, color="k", label="runs")
    assert ax.lines[0].get_ydata().tolist() == [50, 60]
    corners = ax.collections[0].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == (10, 100)
    plt.close(fig)


def test_ratio_map_covers_its_range() -> None:
    fig, ax = plt.subplots()
    figures.ratio_map(ax, np.array([1.0, 2.0]), np.array([1.0, 2.0]),
                      np.array([[1.0, 4.0], [2.0, 12.0]]))
    assert ax.collections[0].norm.vmin == 1
    assert ax.collections[0].norm.vmax == 12
    assert [text.get_text() for text in fig.axes[1].get_yticklabels()] == ["1", "2", "3", "5", "10"]
    plt.close(fig)


def test_the_ceiling_is_drawn_on_logarithmic_axes() -> None:
    fig, ax = plt.subplots()
    figures.ceiling(ax, np.array([1 / 9, 0.5, 1.0]))
    assert ax.lines[0].get_xdata().tolist() == [1 / 9, 0.5, 1.0]
    assert ax.lines[0].get_ydata() == pytest.approx([25 / 9, 9 / 8, 1])
    shaded = ax.collections[0].get_paths()[0].vertices
    assert (shaded[:, 1].min(), shaded[:, 1].max()) == pytest.approx((1, 25 / 9))
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.yaxis.get_major_formatter()(100.0) == "100"
    plt.close(fig)
