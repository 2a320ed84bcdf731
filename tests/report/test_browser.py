"""The page in a browser: it turns, asks for nothing, fits every width, and can be used by everybody.

Needs the package playwright and Chromium; the rules of axe-core are read from the file named by EENET_AXE. `make
test-browser` gets these rules.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.evaluation.tables import planted
from tests.report.test_explorer import KINDS, compared, utilities_only

from eenet import report
from eenet.evaluation import compare
from eenet.schedulers import EENetScheduler, GeometricScheduler, PatienceScheduler, StoppingScheduler

pytestmark = pytest.mark.slow

WIDTHS = {"phone": 390, "desktop": 1280}
THEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def comparison():
    schedulers = {"eenet": EENetScheduler(), "max_prob": GeometricScheduler(), "patience": PatienceScheduler()}
    groups = np.repeat(["a", "b"], 200)
    found = compare(planted(400, 1, 4), planted(400, 2, 4), schedulers, ["60%"], groups=groups, resamples=20)
    return json.loads(json.dumps(found.to_dict()))


@pytest.fixture(scope="module")
def file(comparison, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    count = len(comparison["dial"]["positions"])
    exits = tuple(min(3, k // 12) for k in range(count))
    example = report.Example(exit_index=exits[0], caption="moves", text="an input", exits=exits)
    report.write_page(path, report.comparison_page(comparison, examples=[example], caveats=["none"]))
    return path


@pytest.fixture
def opened(browser, file):
    """Return a function that opens a page; nothing but its file was asked for, and nothing went wrong."""
    contexts, asked, wrong, files = [], [], [], set()

    def opened(width=1280, theme="light", file=file, **more):
        files.add(file.as_uri())
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme, **more)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.goto(file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert set(asked) <= files and wrong == []


def shown(page, name):
    return page.locator(f'[data-text="0:{name}"]').first.text_content()


def test_turning_the_slider_shows_the_numbers_of_the_json(opened, comparison):
    page, full = opened(), comparison["reference"]
    slider = page.locator("#turn-0")
    positions = comparison["dial"]["positions"]
    for k in (0, 7, len(positions) - 1):
        slider.fill(str(k))
        one = positions[k]
        assert shown(page, "verdict") == one["saving"]["sentence"]
        assert shown(page, "cost") == f"{one['cost'] / full:.1%}"
        assert shown(page, "utility") == f"{one['utility']:.2%}"
        for exit_, share in enumerate(one["exit_distribution"]):
            assert shown(page, f"share-{exit_}") == f"{share:.1%}"
            bar = page.locator(f'[data-draw="0:bar-{exit_}"]')
            assert bar.get_attribute("style") == f"width:{100 * share:.2f}%"
        assert f"{one['cost'] / full:.1%}" in slider.get_attribute("aria-valuetext")
        moved = page.locator('[data-exits^="0:"]').evaluate("node => node.parentElement.dataset.left")
        assert moved == f"0:{min(3, k // 12)}"


def test_the_marker_moves_and_lies_on_the_curve(opened, comparison):
    page = opened()
    places = []
    for k in (0, 20):
        page.locator("#turn-0").fill(str(k))
        dot = page.locator("circle.now").bounding_box()
        places.append((dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2))
        near = page.evaluate(
            "([x, y]) => { const path = document.getElementById('curve-0-0'); const box = path.getScreenCTM();"
            "let least = 1e9; for (let at = 0; at <= path.getTotalLength(); at += 0.5) {"
            "const p = path.getPointAtLength(at).matrixTransform(box);"
            "least = Math.min(least, Math.hypot(p.x - x, p.y - y)); } return least; }",
            list(places[-1]),
        )
        assert near < 2
    assert places[0] != places[1]


def test_keys_and_buttons_turn_it(opened):
    page = opened()
    slider = page.locator("#turn-0")
    slider.fill("5")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert slider.input_value() == "6"
    page.get_by_role("button", name="smaller budget").click()
    page.get_by_role("button", name="smaller budget").click()
    assert slider.input_value() == "4"
    before = shown(page, "budget")
    page.keyboard.press("Enter")
    assert slider.input_value() == "3" and shown(page, "budget") != before


def test_other_curves_are_shown_on_demand(opened):
    page = opened()
    curve = page.locator("path[id='curve-0-3']")
    assert not curve.is_visible()
    page.get_by_text("other curves").first.click()
    page.locator("input[data-curve='curve-0-3']").check()
    assert curve.is_visible()


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("position", ["0", "40"])
def test_nothing_is_wider_than_the_window(opened, width, position):
    page = opened(width)
    page.locator("#turn-0").fill(position)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # whatever is cut off can be scrolled to: inside of a region, or in the stretched square of a plot
    cut = page.evaluate(
        "Array.from(document.querySelectorAll('main *')).filter(one => !one.closest('.wide, svg, pre')"
        " && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"
    )
    assert cut == []


def test_without_javascript_the_first_state_can_be_read(opened, comparison):
    page = opened(java_script_enabled=False)
    (asked,) = [one for one in comparison["dial"]["positions"] if one["budget"] == comparison["rows"][0]["budget"]]
    assert shown(page, "cost") == f"{asked['cost'] / comparison['reference']:.1%}"
    assert not page.locator("#turn-0").is_visible() and page.locator("svg.plot").is_visible()


def pictures(k, exits):
    return report.Example(exit_index=k, caption="cat, answered cat", image=np.zeros((32, 32, 3), np.uint8), exits=exits)


def texts(k, exits):
    return report.Example(exit_index=k, caption="good, answered good", text="a long word " * 20 + "o" * 90, exits=exits)


PAGES = {name: (*made, None) for name, made in KINDS.items()} | {
    "pictures": (lambda seed: planted(120, seed), {}, pictures),
    "texts": (lambda seed: planted(120, seed, classes=2), {}, texts),
    "no labels": (lambda seed: utilities_only(120, seed), {"schedulers": {"stopping": StoppingScheduler()}}, None),
}


@pytest.mark.parametrize("kind", PAGES)
def test_every_kind_of_page_turns_and_fits(opened, kind, tmp_path):
    make, more, example = PAGES[kind]
    found = compared(make(1), make(2), **more)
    positions = found.get("dial", {}).get("positions", [])
    turned = tuple(k % len(found["exits"]) for k in range(len(positions)))
    examples = [example(turned[0], turned)] if example else []
    file = tmp_path / "report.html"
    report.write_page(file, report.comparison_page(found, examples=examples))
    for width in WIDTHS.values():
        for theme in THEMES:
            page = opened(width, theme, file=file)
            for k in (0, len(positions) - 1) if positions else ():
                page.locator("#turn-0").fill(str(k))
                assert shown(page, "verdict") == positions[k]["saving"]["sentence"]
                full = found["reference"] or found["exits"][-1]["cost"]
                assert shown(page, "cost") == f"{positions[k]['cost'] / full:.1%}"
            page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert_accessible(page)


def test_a_table_of_who_pays_without_rows_is_not_shown(opened, file, comparison):
    page, paying = opened(), [bool(one.get("who_pays")) for one in comparison["dial"]["positions"]]
    for k in {paying.index(one) for one in paying}:
        page.locator("#turn-0").fill(str(k))
        assert page.get_by_role("region", name="Who pays").first.is_visible() == paying[k]


def assert_accessible(page):
    """Nothing is found by the rules of axe-core, where they are."""
    rules = os.environ.get("EENET_AXE", "")
    if Path(rules).is_file():
        page.add_script_tag(path=rules)
        found = page.evaluate("axe.run()")["violations"]
        assert [(one["id"], one["nodes"][0]["html"][:120]) for one in found] == []


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_axe_finds_nothing(opened, width, theme):
    if not Path(os.environ.get("EENET_AXE", "")).is_file():
        pytest.skip("EENET_AXE names no file: axe.min.js of the npm package axe-core")
    page = opened(width, theme)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert_accessible(page)
