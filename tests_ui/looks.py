"""A page as a person opens it: what they see of it, click on it, and whether it keeps anybody out."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


def opened(browser: Browser, width: str = "desktop", scheme: Any = "light", **context: Any) -> Page:
    """A page that fails where a script does, and reaches nothing but this machine."""
    size = WIDTHS[width]
    page = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, **context
    ).new_page()
    page.set_default_timeout(20_000)
    foreign: list[str] = []

    def watch(route: Any) -> None:
        address = route.request.url
        if re.match(r"(file|data|blob):|https?://(127\.0\.0\.1|localhost)[:/]", address):
            route.continue_()
        else:
            foreign.append(address)
            route.abort()

    page.route("**/*", watch)
    page.on("pageerror", lambda error: pytest.fail(f"a script failed: {error}"))
    page.foreign = foreign  # type: ignore[attr-defined]
    return page


def serious(page: Page) -> list[str]:
    """What axe-core finds that keeps people out, once nothing on the page is dimmed any more for being renewed."""
    page.wait_for_timeout(1500)
    found = Axe().run(page).response["violations"]
    heavy = [one for one in found if one["impact"] in {"serious", "critical"}]
    return [f"{one['id']}: {node['html'][:200]} {node['failureSummary']}" for one in heavy for node in one["nodes"]]


def found(page: Page) -> int:
    """How many candidates fit, as the page says."""
    text = page.locator("#found").inner_text()
    return 0 if "nothing" in text else int(text.rsplit(" ", 1)[1].replace(",", ""))


def begin(page: Page, address: str, name: str) -> None:
    page.goto(address)
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Begin").click()
    expect(page.locator("#state")).to_contain_text(f"{name}: ")


def vote(page: Page, button: str, done: int) -> None:
    time.sleep(0.5)  # who clicks at once has not read
    page.get_by_role("button", name=button).click()
    expect(page.locator("#state")).to_contain_text(f": {done} of")


def unloaded(page: Page) -> list[str]:
    """What of the pictures on the page is not there."""
    found = "images => images.filter(one => !one.complete || !one.naturalWidth).map(one => one.alt)"
    return page.locator("img").evaluate_all(found)
