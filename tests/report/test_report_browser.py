"""The page in headless Chromium, as people meet it: phone and desktop, light and dark, by keyboard, without JavaScript."""

import contextlib
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from semantica.report.page import render

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here; pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt-get install chromium")

PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}
HOSTILE = '<img src="http://pictures.example.org/x.png" onerror="alert(1)">'
LONG = "an_unbroken_name_" * 12

# Every text of the page with its own colour, against the first background that is painted behind it.
CONTRASTS = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
      .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = node => {
    for (let e = node; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    throw new Error("nothing is painted behind " + node.outerHTML);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || node.closest("style")) continue;
    const style = getComputedStyle(node);
    const ink = node.closest("svg") && style.fill !== "none" ? style.fill : style.color;
    const [high, low] = [light(parse(ink)), light(behind(node))].sort((a, b) => b - a);
    found.push([(high + .05) / (low + .05), text.slice(0, 40)]);
  }
  return found;
}"""

# What is focused: what it is, where it is, and whether its outline (or its card's) can be seen.
FOCUSED = """() => {
  const node = document.activeElement, shown = node.closest(".card") || node, style = getComputedStyle(shown);
  const box = shown.getBoundingClientRect();
  return {
    tag: node.tagName, name: node.ariaLabel || node.textContent.trim().slice(0, 40),
    outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
    left: box.left, right: box.right, top: box.top, bottom: box.bottom,
    order: [...document.querySelectorAll("*")].indexOf(node),
  };
}"""


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(chromium, paper_report, tmp_path_factory):
    """with opened(text, **settings of the browser) as page: the report of that text; what it said and asked for is checked."""
    folder, written = tmp_path_factory.mktemp("report"), {}

    @contextlib.contextmanager
    def open_(text="plain", **settings):
        if text not in written:
            written[text] = folder / f"{len(written)}.html"
            written[text].write_text(render(paper_report(text)), encoding="utf-8")
        context = chromium.new_context(**{"viewport": DESKTOP, **settings})
        try:
            page = context.new_page()
            said, asked = [], []
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("dialog", lambda dialog: said.append(dialog.message))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(written[text].as_uri())
            yield page
            assert said == []
            assert [url for url in asked if not url.startswith("data:")] == [written[text].as_uri()]
        finally:
            context.close()

    return open_


@pytest.mark.parametrize("text", ["plain", HOSTILE])
def test_it_says_nothing_asks_for_nothing_and_every_picture_is_decoded(opened, text):
    with opened(text) as page:
        page.wait_for_load_state("networkidle")
        sizes = page.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
        assert len(sizes) > 80
        assert min(sizes) >= 32


@pytest.mark.parametrize("text", ["plain", LONG])
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_is_wider_than_the_screen(opened, width, text):
    with opened(text, viewport={"width": width, "height": 740}) as page:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        beyond = page.evaluate(
            """[...document.querySelectorAll('main *, header *, footer *')]
                .filter(e => !e.closest('.scroll, pre, .sr') && e.getBoundingClientRect().right > innerWidth + .5)
                .map(e => e.outerHTML.slice(0, 80))"""
        )
        assert beyond == []


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP])
def test_light_and_dark_are_two_pages_and_every_text_is_legible_on_both(opened, viewport):
    shots = {}
    for theme in ("light", "dark"):
        with opened(viewport=viewport, color_scheme=theme) as page:
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            found = page.evaluate(CONTRASTS)
            assert len(found) > 300
            assert min(found)[0] >= 4.5, min(found)
            shots[theme] = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L")).astype(float)
    assert shots["light"].shape == shots["dark"].shape
    assert shots["light"][:, :8].mean() > 250  # the margin: white paper
    assert shots["dark"][:, :8].mean() < 30
    assert (np.abs(shots["light"] - shots["dark"]) > 100).mean() > 0.5


def test_the_skip_link_is_the_first_stop_is_seen_and_leads_to_the_figures(opened):
    with opened(viewport=PHONE, reduced_motion="reduce") as page:
        page.keyboard.press("Tab")
        first = page.evaluate(FOCUSED)
        assert first["name"] == "Skip to the figures"
        assert first["left"] >= 0
        assert first["top"] >= 0
        page.keyboard.press("Enter")
        page.wait_for_url("**#figures")
        assert abs(page.locator("#figures").bounding_box()["y"]) < 60


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP])
def test_tab_goes_through_the_page_in_its_order_and_shows_where_it_is(opened, viewport):
    with opened(viewport=viewport, reduced_motion="reduce") as page:
        stops = []
        for _ in range(80):
            page.keyboard.press("Tab")
            stop = page.evaluate(FOCUSED)
            if stop["tag"] == "BODY":
                break
            stops.append(stop)
        assert len(stops) > 20
        assert [stop["order"] for stop in stops] == sorted({stop["order"] for stop in stops})
        assert all(stop["outlined"] for stop in stops)
        assert all(stop["bottom"] > 0 and stop["top"] < viewport["height"] for stop in stops)
        names = [stop["name"] for stop in stops]
        assert [names.count(name) for name in ("plain 0", "example 1")] == [1, 1]  # a gallery is one stop
        assert any(name.startswith("Table:") for name in names)
        assert any(name.startswith("Chart:") for name in names)


@pytest.mark.parametrize("settings", [{"viewport": DESKTOP}, {"viewport": PHONE, "java_script_enabled": False}])
def test_arrow_keys_move_through_the_gallery_and_enlarge_what_they_reach(opened, settings):
    with opened(reduced_motion="reduce", **settings) as page:  # else it is still scrolling when it is looked at
        cards = page.locator(".cards").first.locator(".card")

        def widths():
            return [card.locator("img").first.bounding_box()["width"] for card in cards.all()]

        def chosen():
            return [card.locator("input").is_checked() for card in cards.all()].index(True)

        cards.nth(0).locator("input").focus()
        assert chosen() == 0
        for key, expected in (("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 1), ("ArrowUp", 0), ("ArrowLeft", 5)):
            page.keyboard.press(key)
            assert chosen() == expected, key
            found = widths()
            assert found[expected] > 1.8 * max(w for i, w in enumerate(found) if i != expected)
            box = cards.nth(expected).bounding_box()
            assert -1 <= box["y"] < settings["viewport"]["height"]
        assert page.locator(".cards").nth(1).locator("input").first.is_checked()  # the other gallery stays as it was


def test_a_tap_enlarges_an_example_and_what_is_tapped_is_large_enough(opened):
    with opened(viewport=PHONE, has_touch=True, is_mobile=True) as page:
        page.locator(".card").nth(3).tap()
        assert page.locator(".card").nth(3).locator("input").is_checked()
        assert not page.locator(".card").nth(0).locator("input").is_checked()
        for selector in ("nav a", "summary", ".card input"):
            for target in page.locator(selector).all():
                box = target.bounding_box()
                assert box["height"] >= 44, selector  # WCAG 2.5.5
                assert box["width"] >= 44, selector


def test_the_condition_stays_in_sight_while_its_samples_are_scrolled(opened):
    with opened(viewport=PHONE) as page:
        grid = page.locator(".scroll:has(.samples)").first
        before = grid.locator("tbody th img").first.bounding_box()["x"]
        last = grid.locator("tbody tr").first.locator("td img").last
        assert last.bounding_box()["x"] > PHONE["width"]
        grid.evaluate("e => { e.scrollLeft = e.scrollWidth }")
        assert last.bounding_box()["x"] + last.bounding_box()["width"] <= PHONE["width"]
        assert grid.locator("tbody th img").first.bounding_box()["x"] == pytest.approx(before, abs=1)


def test_whoever_wants_no_motion_gets_none(opened):
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    with opened(reduced_motion="reduce") as page:
        assert page.evaluate(behaviour) == "auto"
    with opened(reduced_motion="no-preference") as page:
        assert page.evaluate(behaviour) == "smooth"


def test_small_pictures_are_enlarged_pixel_by_pixel_and_text_in_charts_is_no_smaller_than_9_px_on_a_phone(opened):
    with opened(viewport=PHONE) as page:
        assert page.evaluate("getComputedStyle(document.querySelector('.samples td img')).imageRendering") == "pixelated"
        sizes = page.evaluate(
            """[...document.querySelectorAll('svg text')].map(
                t => parseFloat(getComputedStyle(t).fontSize) * t.closest('svg').getScreenCTM().a)"""
        )
        assert min(sizes) >= 8.9
