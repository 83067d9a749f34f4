"""The built pages as a reader's browser sees them, on a desktop and on a telephone."""

import html
import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml

import book
from companion.streams import stream
from companion.theory import programs

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"


def entries(chapters: list[dict]) -> list[str]:
    return [name.removesuffix(".ipynb") for entry in chapters
            for name in (entry["file"], *entries(entry.get("sections", [])))]


LISTED = [name for part in yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]
          for name in entries(part["chapters"])]
PAGES = [f"{name}.html" for name in ("index", *LISTED)]
SIZES = {"desktop": (1280, 900), "telephone": (390, 844)}
# what a reader may open is open; pictures that are not in sight are fetched
OPEN = """async () => {
  document.querySelectorAll('article details').forEach(e => { e.open = true; });
  [...document.images].forEach(i => { i.loading = 'eager'; });
  await Promise.all([...document.images].map(i => i.decode().catch(() => null)));
  document.dispatchEvent(new Event('toggle'));  // what was opened is fitted in the next frame
  await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
  document.getAnimations().forEach(a => a.finish());  // what fades in is half transparent
}"""
LOOK = """() => {
  const right = e => e.getBoundingClientRect().right;
  const scrolls = e => e && (getComputedStyle(e).overflowX === 'auto' || scrolls(e.parentElement));
  return {
    formulas: document.querySelectorAll('.math').length,
    typeset: document.querySelectorAll('mjx-container').length,
    broken: document.querySelectorAll('mjx-merror').length,
    stops: document.querySelectorAll('mjx-container:not([display])[tabindex]').length,
    images: [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length,
    mute: [...document.querySelectorAll('article img')].filter(i => !i.alt.trim()).map(i => i.src),
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    cut: [...document.querySelectorAll('mjx-container:not([display])')].filter(
      e => right(e) > window.innerWidth && !scrolls(e.parentElement)).map(e => e.textContent),
    scrolling: [...document.querySelectorAll('article table')].filter(
      e => e.scrollWidth > e.parentElement.clientWidth + 1).map(e => e.textContent.slice(0, 80)),
  };
}"""
# the many elements of formulas and of code look alike, and axe takes its time for each
AXE = """async ([theme, rules, where]) => {
  document.querySelectorAll('mjx-container > *').forEach(e => e.replaceChildren());
  [...document.querySelectorAll('pre')].slice(3).forEach(e => { e.textContent = e.textContent; });
  Object.assign(document.documentElement.dataset, {theme, mode: theme});
  document.getAnimations().forEach(a => a.finish());
  const found = await axe.run(where, {runOnly: rules, preload: false});
  return found.violations.map(v => theme + ', ' + v.id + ': ' + v.nodes.slice(0, 3).map(
    n => n.html.slice(0, 160)).join(' | '));
}"""
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
CONTRAST = {"type": "rule", "values": ["color-contrast"]}  # all that the dark can change
SCROLLING = {"type": "rule", "values": ["scrollable-region-focusable"]}
WHOLE = {"include": [["html"]]}
# what a telephone shows otherwise than a desktop: bars and buttons, and in the text these
NARROW = WHOLE | {"include": [["html"], ["article table.stacked"], ["article .claim-part"],
                              ["article .book-explorer"]], "exclude": [["article"]]}
LOOKS = {"desktop": [("light", LEVELS, WHOLE), ("dark", CONTRAST, WHOLE)],
         "telephone": [("light", LEVELS, NARROW), ("light", SCROLLING, WHOLE),
                       ("dark", CONTRAST, NARROW)]}


def axe_script() -> str:
    spec = importlib.util.find_spec("axe_playwright_python")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "axe.min.js")


def test_no_page_is_left_out() -> None:
    built = {path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html")
             if not {"_static", "_modules"} & set(path.parts)}
    assert built - {"genindex.html", "search.html", "py-modindex.html"} == set(PAGES)
    written = {path.relative_to(ROOT).with_suffix("").as_posix()
               for path in (ROOT / "book").rglob("*.md")}
    assert written == set(LISTED)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAGES)
def test_page(context, site: str, name: str, size: str) -> None:
    page = opened(context, size)
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
    visit(page, site + name)
    page.evaluate(OPEN)
    page.wait_for_load_state("networkidle")
    seen = page.evaluate(LOOK)
    assert [url for url in requests if not url.startswith((site, "data:", "blob:"))] == []
    assert complaints == []
    assert seen["typeset"] == seen["formulas"]
    assert {what: seen[what] for what in ("broken", "stops", "images", "mute", "cut",
                                          "scrolling")} == {
        "broken": 0, "stops": 0, "images": 0, "mute": [], "cut": [], "scrolling": []}
    assert seen["overflow"] <= 0
    if "landscape" in name:
        assert seen["formulas"] > (5 if "images" in name else 30)
    page.add_script_tag(path=axe_script())
    for look in LOOKS[size]:
        assert page.evaluate(AXE, look) == []
    page.close()


def opened(context, size: str = "desktop"):
    """A tab of the worker's one window, which keeps what pages share."""
    page = context.new_page()
    page.set_viewport_size(dict(zip(("width", "height"), SIZES[size], strict=True)))
    return page


def visit(page, url: str) -> None:
    page.goto(url, wait_until="load")
    page.wait_for_selector("html[data-typeset=done]", state="attached")
    page.wait_for_load_state("networkidle")


def test_links_lead_somewhere() -> None:
    """Every link within the book, to a page, a file or an anchor."""
    anchors, missing = {}, []
    for path in HTML.rglob("*.html"):
        if not {"_static", "_modules"} & set(path.parts):
            anchors[path] = set(re.findall(r'\bid="([^"]+)"', path.read_text(encoding="utf-8")))
    for path in anchors:
        for target in re.findall(r'\bhref="([^"]+)"', path.read_text(encoding="utf-8")):
            address = urlsplit(html.unescape(target))
            if address.scheme or not (address.path or address.fragment):
                continue
            page = (path.parent / unquote(address.path)).resolve() if address.path else path
            fragment = unquote(address.fragment)
            if not page.exists() or (fragment and page in anchors
                                     and fragment not in anchors[page]):
                missing.append(f"{path.relative_to(HTML)}: {target}")
    assert missing == []
    assert sum(map(len, anchors.values())) > 1000


def test_a_page_is_light() -> None:
    """With its pictures, without what all pages share, a page is below one megabyte."""
    for path in (HTML / name for name in PAGES):
        text = path.read_text(encoding="utf-8")
        pictures = {(path.parent / name).resolve()
                    for name in re.findall(r'<img[^>]* src="([^"]+)"', text)}
        assert len(text.encode()) + sum(one.stat().st_size for one in pictures) < 1e6, path
        assert "fontawesome.js" not in text
        assert re.search(r'<meta (?:[^>]* )?name="description"', text), path


EXPLORERS = {"landscape": ("book/landscape/gap.html", programs.mixture()),
             "step": ("book/depth/shallow.html", programs.preconditioner())}
READ = """box => ({
  values: JSON.parse(box.dataset.values), said: box.querySelector('.said').textContent,
  drawn: box.querySelector('.pictures').innerHTML, address: location.search,
  shown: [...box.querySelectorAll('input')].map(i => i.getAttribute('aria-valuetext')),
})"""


def some_settings(knobs: dict, count: int) -> list[dict]:
    """Settings of an explorer, a fifth of the values at an end of its slider."""
    rng = stream(0, "pages/explorers")

    def one(knob: dict) -> float:
        if rng.random() < 0.2:
            ends = [knob["least"], math.inf if knob["scale"] == "support" else knob["most"]]
            return float(rng.choice(ends))
        value = rng.uniform(knob["least"], knob["most"])
        return round(value) if knob["scale"] in ("whole", "support") else value

    return [{name: one(knob) for name, knob in knobs.items()} for _ in range(count)]


@pytest.mark.parametrize("ident", EXPLORERS)
def test_an_explorer_computes_what_python_does(context, site: str, ident: str) -> None:
    address, program = EXPLORERS[ident]
    page = opened(context)
    visit(page, site + address)
    box = page.locator(f"#{ident}")
    knobs = json.loads(box.locator("script").text_content())["knobs"]
    settings = some_settings(knobs, 500)
    sent = [{name: "inf" if math.isinf(value) else value for name, value in one.items()}
            for one in settings]
    found = box.evaluate("""(box, all) => all.map(one => box.evaluate(Object.fromEntries(
        Object.entries(one).map(([name, v]) => [name, v === 'inf' ? Infinity : v]))))""", sent)
    given = {name: np.array([1 / one[name] if knobs[name]["scale"] == "support" else one[name]
                             for one in settings], dtype=float) for name in knobs}
    exact = programs.evaluate(program, given)
    for name in program:
        drawn = np.array([one[name] for one in found], dtype=float)
        assert not np.isnan(drawn).any(), name
        np.testing.assert_allclose(drawn, np.broadcast_to(exact[name], drawn.shape), rtol=1e-12,
                                   atol=1e-13, err_msg=name)
    page.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ident", EXPLORERS)
def test_an_explorer_follows_its_knobs(context, site: str, ident: str, size: str) -> None:
    page = opened(context, size)
    visit(page, site + EXPLORERS[ident][0])
    box, rest = page.locator(f"#{ident}"), f"#{ident}[data-settled=yes]"
    page.wait_for_selector(rest)
    first = box.evaluate(READ)
    for i in range(box.locator("input").count()):
        knob = box.locator("input").nth(i)
        knob.focus()
        for key in ("End", "ArrowLeft", "Home", "ArrowRight"):
            before = box.evaluate(READ)
            page.keyboard.press(key)
            after = box.evaluate(READ)
            assert after["shown"] == after["values"]
            assert "NaN" not in after["drawn"]
            assert key in ("End", "Home") or after["values"][i] != before["values"][i]
    page.wait_for_selector(rest)
    moved = box.evaluate(READ)
    assert moved["said"] not in (first["said"], "")
    assert moved["drawn"] != first["drawn"]
    visit(page, f"{site}{EXPLORERS[ident][0]}{moved['address']}")
    assert box.evaluate(READ)["values"] == moved["values"]
    for button in box.locator(".presets button").all():
        button.click()
        assert "NaN" not in box.evaluate(READ)["drawn"]
    box.locator(".reset").click()
    page.wait_for_selector(rest)
    assert box.evaluate(READ) == first
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


def test_the_book_prints(ci: bool) -> None:
    """One PDF with every figure of the pages in it, and references that can be followed."""
    if book.chromium() is None and not ci:
        pytest.skip("no Chromium found")
    command = [sys.executable, ROOT / "tools" / "book.py", "pdf", "--jobs", "1"]
    subprocess.run(command, check=True)  # makes one where that of these pages is not there
    printed = (HTML.parent / "maml-companion.pdf").read_bytes()
    figures = {path for name in PAGES
               for path in re.findall(r'_images/\w+\.png',
                                       (HTML / name).read_text(encoding="utf-8"))}
    assert len(figures) > 40
    assert len(re.findall(rb"/Subtype\s*/Image\b", printed)) >= len(figures)
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) > 100
    assert len(re.findall(rb"/Subtype\s*/Link\b", printed)) > 500
    assert len(re.findall(rb"/S\s*/URI\b", printed)) < len(re.findall(rb"/Dest\b", printed))


def test_the_search_finds_claims_and_letters(context, site: str) -> None:
    page = opened(context)
    for words, name in (("inconclusive placebo", "ledger"), ("alpha", "notation"),
                        ("packed", "gap")):
        visit(page, f"{site}search.html?q={words}")
        page.wait_for_function("document.querySelectorAll('#search-results li').length > 0")
        page.wait_for_function("!document.querySelector('#search-results h2')"
                               "?.textContent.includes('Searching')")
        page.wait_for_load_state("networkidle")
        found = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.href)")
        assert any(f"/{name}.html" in link for link in found), (words, found)
        excerpts = page.locator("#search-results p.context").all_text_contents()
        assert not [text for text in excerpts if "import " in text or "figures." in text]
    page.close()
