"""The page in a real Chromium: what a person would see."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.sinks.dashboard.agents import TOKEN, StartDashboard

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WITHIN_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH; install it (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, and in a container, Chromium has no sandbox of its own; it opens nothing but our page.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: object) -> Iterator[Page]:
    """A page; whatever it complains about fails the test, but lines that are cut on purpose."""
    from playwright.sync_api import Browser

    assert isinstance(browser, Browser)
    context = browser.new_context(viewport={"width": 1600, "height": 900})
    context.set_default_timeout(WITHIN_MS)
    made = context.new_page()
    complaints: list[str] = []
    made.on("pageerror", lambda error: complaints.append(str(error)))
    made.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    yield made
    context.close()
    assert [text for text in complaints if "WebSocket" not in text and "Failed to load resource" not in text] == []


def wait_for(page: Page, selector: str, pattern: str) -> str:
    """The text of `selector` once it matches."""
    page.wait_for_function(
        "([selector, pattern]) => new RegExp(pattern).test(document.querySelector(selector)?.textContent ?? '')",
        arg=[selector, pattern],
    )
    return page.text_content(selector) or ""


def test_the_page_shows_the_plan_the_picture_and_the_history(
    page: Page, start_dashboard: StartDashboard, tmp_path: Path
) -> None:
    agent = start_dashboard()
    page.goto(agent.url)
    wait_for(page, "#status", "RUNNING")
    wait_for(page, "#ranked li:first-child .chance", r"\d+ %")
    wait_for(page, "#age", r"^(\d+ ms|\d\.\d s)$")
    wait_for(page, "#rung", "statistical")
    wait_for(page, "#overlay-frame", r"frame \d+")
    page.wait_for_function("() => document.querySelectorAll('#timeline button').length >= 1")
    lit = "(c => c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data[0])(document.querySelector('#picture'))"
    assert page.evaluate(lit) > 0
    assert not page.locator("#advice.expired").count()
    # Every action fits, and nothing needs scrolling sideways.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(path=tmp_path / "page.png")


def test_an_expired_plan_is_greyed_by_the_pages_own_clock(page: Page, start_dashboard: StartDashboard) -> None:
    agent = start_dashboard()
    page.goto(agent.url)
    wait_for(page, "#ranked li:first-child .chance", r"\d+ %")
    agent.freeze()
    try:
        page.wait_for_selector("#advice.expired")
        assert "EXPIRED" in wait_for(page, "#verdict-line", "EXPIRED")
        wait_for(page, "#status", "NO WORD FROM THE AGENT")
        first = float((wait_for(page, "#expiry", r"\d+\.\d s ago")).split()[0])
        page.wait_for_function(
            "first => parseFloat(document.querySelector('#expiry').textContent) > first + 1", arg=first
        )
        style = page.eval_on_selector("#ranked", "e => getComputedStyle(e).textDecorationLine")
        assert "line-through" in style
    finally:
        agent.thaw()
    page.wait_for_selector("#advice:not(.expired)")
    wait_for(page, "#status", "RUNNING")


def test_the_page_survives_the_agents_end_and_shows_the_next_one(page: Page, start_dashboard: StartDashboard) -> None:
    agent = start_dashboard()
    page.goto(agent.url)
    wait_for(page, "#status", "RUNNING")
    agent.process.kill()
    agent.process.wait()
    wait_for(page, "#status", "NO CONNECTION")
    page.wait_for_selector("#advice.expired")
    start_dashboard(f"sinks.dashboard.port={agent.port}", "memory.case_id=the next")
    wait_for(page, "#status", "RUNNING")
    wait_for(page, "#case", "the next")
    page.wait_for_selector("#advice:not(.expired)")


def test_a_wrong_token_opens_nothing_and_the_right_one_does(page: Page, start_dashboard: StartDashboard) -> None:
    agent = start_dashboard("sinks.dashboard.token_env=DASHBOARD_TOKEN")
    page.goto(f"{agent.url}/?token=guessed")
    wait_for(page, "h1", "needs its token")
    page.fill("#token", "guessed again")
    page.press("#token", "Enter")
    wait_for(page, "h1", "needs its token")
    assert page.locator("#ranked").count() == 0
    page.fill("#token", TOKEN)
    page.press("#token", "Enter")
    wait_for(page, "#status", "RUNNING")
    assert TOKEN not in page.url
    assert page.evaluate("document.cookie") == ""


def test_everything_can_be_done_from_the_keyboard(page: Page, start_dashboard: StartDashboard) -> None:
    agent = start_dashboard("source.synthetic_speed=60", "sinks.dashboard.verdicts=kept")
    page.goto(agent.url)
    wait_for(page, "#selected", r"[1-9]\d* closed label")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#timeline [aria-selected=true]")
    page.keyboard.press("a")
    wait_for(page, "#selected", "judged")
    page.keyboard.press("m")
    wait_for(page, "#facts", "Hash of config")
    page.keyboard.press("Escape")
    assert page.locator("#inspector").is_hidden()
    page.keyboard.press("g")
    page.keyboard.type("Only look around.")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => document.querySelector('#goal').value === 'Only look around.' && !document.activeElement.id"
    )
    page.keyboard.press("p")
    wait_for(page, "#status", "PAUSED")
    wait_for(page, "#verdict-line", "paused by the user")
    page.keyboard.press("p")
    wait_for(page, "#status", "RUNNING")
    page.once("dialog", lambda dialog: dialog.accept())
    page.keyboard.press("n")
    page.keyboard.type("case-2")
    page.keyboard.press("Enter")
    wait_for(page, "#case", "case-2")


def test_text_from_the_stream_is_never_markup(page: Page, start_dashboard: StartDashboard) -> None:
    agent = start_dashboard("memory.case_id=<img src=x onerror=alert(1)>")
    page.goto(agent.url)
    wait_for(page, "#case", "<img")
    assert page.locator("#case img").count() == 0
