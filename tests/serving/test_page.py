"""The page at / in a browser: numbers change, the slider turns the budget, and no request leaves the host.

Needs the package playwright and Chromium.
"""

import shutil
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from listening import listening, sent
from replaying import ReplayEngine, rows

from eenet import AdaptiveModel, CostTable, ExitTable
from eenet.schedulers import GeometricScheduler
from eenet.serving.served import Served

pytestmark = pytest.mark.slow
COSTS = CostTable((1.0, 2.0, 3.0, 4.0), "ms")
LOGITS = (1.5 * np.random.default_rng(0).standard_normal((96, 4, 6)).cumsum(axis=1)).astype(np.float32)
TABLE = ExitTable(logits=LOGITS, labels=LOGITS[:, -1].argmax(axis=1), costs=COSTS)


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


@pytest.fixture
def opened(browser):
    """Return a function that opens the page of a server; nothing but this host was asked, and nothing went wrong."""
    contexts, asked, wrong = [], [], []

    def opened(url, width=1280):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}))
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert {urlsplit(one).hostname for one in asked if not one.startswith("data:")} == {"127.0.0.1"}
    assert [one for one in wrong if "401" not in one] == []  # a browser notes each refusal


def served() -> Served:
    dial = GeometricScheduler().sweep(TABLE)
    return Served(name="m", model=AdaptiveModel(ReplayEngine(LOGITS), dial.at(2.5), COSTS, dial=dial))


def shows(page, name: str, text: str) -> None:
    page.wait_for_function("([name, text]) => document.getElementById(name).textContent === text", arg=[name, text])


def begins(page, text: str) -> None:
    page.wait_for_function("text => document.getElementById('asked').textContent.startsWith(text)", arg=text)


def test_numbers_change_and_the_slider_turns_the_budget(opened):
    with listening(served()) as (url, service):
        page = opened(url)
        shows(page, "state", "ready")
        shows(page, "samples", "0")
        answer = httpx.post(f"{url}/v2/models/m/infer", **sent({"row": rows(96)}, parameters={"sample_id": 0}))
        assert answer.status_code == 200
        shows(page, "samples", "96")
        bars = page.locator("#exits .bar").evaluate_all("bars => bars.map(bar => parseFloat(bar.style.width))")
        assert sum(bars) == pytest.approx(100) and bars[0] == pytest.approx(100 * service.snapshot().exits[0] / 96)
        slider = page.locator("#slider")
        slider.fill("50")
        begins(page, "2 ms, 50.0 %")
        for _ in range(100):
            if service.budget is not None:
                break
            page.wait_for_timeout(50)
        assert service.budget.value == pytest.approx(2.0)  # the geometric mean of 1 and 4
        shows(page, "in_force", "2 ms")
        service.set_budget("75%")  # turned elsewhere: the page follows
        begins(page, "3 ms, 75.0 %")
        assert 75 < float(slider.input_value()) < 85
        slider.focus()
        page.keyboard.press("Home")
        begins(page, "1 ms, 25.0 %")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(opened, width):
    with listening(served()) as (url, _):
        page = opened(url, width)
        shows(page, "state", "ready")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.goto(f"{url}/docs")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_token_is_asked_for(opened):
    with listening(served(), token="sixteen-characters-and-more") as (url, _):
        page = opened(url)
        page.locator("#token").wait_for()
        page.locator("#token").fill("sixteen-characters-and-more")
        page.get_by_role("button", name="Go on").click()
        shows(page, "state", "ready")
        assert not page.locator("#door").is_visible()
