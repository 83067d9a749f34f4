"""The built pages as a reader's browser sees them, on a desktop and on a telephone."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import sympy as sp
import yaml

import book
from companion.theory.landscape_proofs import derive, symbols

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
LISTED = [entry["file"].removesuffix(".ipynb")
          for part in yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
          for entry in part["chapters"]]
PAGES = [f"{name}.html" for name in ("index", *LISTED)]
SIZES = {"desktop": (1280, 900), "telephone": (390, 844)}
LOOK = """() => ({
  formulas: document.querySelectorAll('.math').length,
  typeset: document.querySelectorAll('mjx-container').length,
  broken: document.querySelectorAll('mjx-merror').length,
  images: [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length,
  mute: [...document.querySelectorAll('article img')].filter(i => !i.alt.trim()).map(i => i.src),
  overflow: document.documentElement.scrollWidth - window.innerWidth,
})"""
AXE = """async () => (await axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a',
  'wcag21aa']})) .violations.map(v => v.id + ': ' + v.nodes.slice(0, 3).map(n => n.html.slice(0,
  160)).join(' | '))"""


def axe_script() -> str:
    spec = importlib.util.find_spec("axe_playwright_python")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "axe.min.js")


def test_no_page_is_left_out() -> None:
    built = {path.relative_to(HTML).as_posix()
             for path in HTML.rglob("*.html")
             if "_static" not in path.parts}
    assert built - {"genindex.html", "search.html", "py-modindex.html", "prf-prf.html"} == set(
        PAGES
    )
    written = {path.relative_to(ROOT).with_suffix("").as_posix()
               for path in (ROOT / "book").rglob("*.md")}
    assert written == set(LISTED)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_page(browser, site: str, name: str, size: str) -> None:
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height})
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on("response",
            lambda answer: (
                complaints.append(f"{answer.status}: {answer.url}") if answer.status > 399 else 0
            ))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(site + name, wait_until="load")
    page.wait_for_load_state("networkidle")
    page.wait_for_function(
        "!window.MathJax?.startup?.promise || MathJax.startup.promise.then(() => true)"
    )
    seen = page.evaluate(LOOK)
    assert [url for url in requests if not url.startswith((site, "data:", "blob:"))] == []
    assert complaints == []
    assert seen["typeset"] == seen["formulas"]
    assert seen["broken"] == 0
    assert seen["images"] == 0
    assert seen["mute"] == []
    assert seen["overflow"] <= 0
    if "landscape" in name:
        assert seen["formulas"] > (5 if "images" in name else 30)
    page.add_script_tag(path=axe_script())
    assert page.evaluate(AXE) == []
    page.close()


@pytest.mark.parametrize("size", SIZES)
def test_the_sliders_draw_the_derived_ratio(browser, site: str, size: str) -> None:
    s, d = symbols(), derive()
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(site + "book/landscape/gap.html", wait_until="load")
    box = page.locator("#ratio")
    sliders = box.locator("input[type=range]")
    assert sliders.count() == 4
    left = {s.a_E: d.leftover_easy, s.a_H: d.leftover_hard}
    ratio = d.risk.subs(s.lam, d.weight_nal) / d.risk.subs(s.lam, d.weight_maml)
    fixed = {s.rho_E: 1, s.v_E: 1, s.p: sp.Rational(1, 2), s.k: 1, s.d: 10}
    exact = sp.lambdify((s.alpha, s.rho_H, s.R, s.v_H, s.u), ratio.subs(left).subs(fixed))
    seen = set()
    for knob in (None, 0, 1, 2, 3):
        if knob is not None:
            sliders.nth(knob).focus()
            for _ in range(15):
                page.keyboard.press("ArrowLeft")
        values = json.loads(box.get_attribute("data-knobs"))
        drawn = np.array(json.loads(box.get_attribute("data-y")))
        steps = np.array([2 * i / 200 for i in range(201)])
        np.testing.assert_allclose(drawn, exact(steps, *values[:3], 1 / (10 * values[3])),
                                   rtol=1e-12)
        assert drawn.max() > 1.01
        seen.add(tuple(values))
    assert len(seen) == 5
    page.close()


def test_a_second_build_does_no_work_twice(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is executed and nothing written; the book is fresh because `make test` has just built
    it."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"the build did work again: {arguments}")

    monkeypatch.setattr(book, "ProcessPoolExecutor", refuse)
    monkeypatch.setattr(book.subprocess, "run", refuse)
    before = (HTML / "index.html").stat().st_mtime_ns
    assert book.build("quick", 1) == HTML / "index.html"
    assert (HTML / "index.html").stat().st_mtime_ns == before
