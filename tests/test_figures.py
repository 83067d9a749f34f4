import json
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import sympy as sp

from companion import figures

x, k, q = sp.symbols("x k q")


def spec(html: str) -> dict:
    return json.loads(re.findall(r"<script[^>]*>(.*?)</script>", html)[0])


KNOBS = {"x": figures.Knob(0, 1, 0.5, "place <x>"),
         "k": figures.Knob(1, 100, math.inf, "samples", "support")}


def test_an_explorer_carries_its_formulas_knobs_and_presets() -> None:
    y = sp.Symbol("y")
    html = figures.explorer({"y": k * x**2 / 2, "z": sp.Function("orelse")(1 / y, 0)}, KNOBS,
                            {"few": {"k": 5}, "all": {"k": math.inf, "x": 0}}, ident="one",
                            view="mixture").data
    found = spec(html)
    assert found["program"] == [["y", "(1/2)*k*Math.pow(x, 2)"], ["z", "orelse(1/y, 0)"]]
    assert found["knobs"]["x"] == {"least": 0, "most": 1, "start": 0.5, "name": "place <x>",
                                   "scale": "linear"}
    assert found["knobs"]["k"]["start"] == "inf"
    assert found["presets"] == {"few": {"k": 5}, "all": {"k": "inf", "x": 0}}
    assert "<x>" not in html


def test_an_explorer_refuses_what_a_page_could_not_draw() -> None:
    def make(expression: sp.Expr, **preset: float) -> None:
        figures.explorer({"y": expression}, KNOBS, {"one": preset} if preset else {}, ident="one",
                         view="mixture")

    with pytest.raises(ValueError, match=r"every symbol of y must be a knob or an earlier name, "
                                         r"got \['q'\]"):
        make(k * x + q)
    with pytest.raises(ValueError, match="y must be plain arithmetic"):
        make(sp.zeta(x))
    with pytest.raises(ValueError, match=r"x of 'one' must lie in \[0, 1\], got 2"):
        make(x, x=2)


def test_table_shows_ready_made_texts() -> None:
    html = figures.table({"m": ["∞", 20], "ratio": ["7.27", "1.02"]}, caption="Few < many.").data
    assert re.findall(r"<td>(.*?)</td>", html) == ["∞", "7.27", "20", "1.02"]
    assert re.search(r"<table[^>]*>\s*<caption>Few &lt; many.</caption>\s*<thead>", html)


def test_indices_are_lowered() -> None:
    made = figures.table({"ρ_H/ρ_E": ["r(α_N)"], "rho_E": ["x_own"]}, caption="by v_H").data
    assert "ρ<sub>H</sub>/ρ<sub>E</sub>" in made
    assert "r(α<sub>N</sub>)" in made
    assert "by v<sub>H</sub></caption>" in made
    assert "rho_E" in made
    assert "x_own" in made


@pytest.mark.parametrize(("value", "count", "text"), [
    (0.0526, 2, "0.053"), (1.9e-6, 2, "1.9·10⁻⁶"), (7e-14, 1, "7·10⁻¹⁴"), (310, 2, "3.1·10²"),
    (0, 2, "0")])
def test_digits_are_written_as_readers_do(value: float, count: int, text: str) -> None:
    assert figures.digits(value, count) == text


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
