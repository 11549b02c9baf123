"""Report and app of a run of pictures in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from tests_ui.conftest import PICTURES
from tests_ui.looks import WIDTHS, begin, found, opened, serious, unloaded, vote

from raftune.report import page as report
from raftune.report.record import Record
from raftune.ui.ballots import Ballots


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report(browser: Browser, drawn: Path, tmp_path: Path, width: str, scheme: str) -> None:
    path, record = tmp_path / "report.html", Record.of(drawn)
    report.write(path, [record])
    page = opened(browser, width, scheme)
    page.goto(path.as_uri())
    shown = record.before_and_after(record.best or record.last, report.PROMPTS, report.PICTURES)
    ends = sum(map(len, record.extremes(record.last, report.EXTREMES)))
    assert page.locator("img").count() == 2 * sum(map(len, shown)) + ends > 0
    assert unloaded(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    assert page.foreign == []  # type: ignore[attr-defined]
    assert serious(page) == []
    page.screenshot(path=PICTURES / f"pictures-report-{width}-{scheme}.png", full_page=True)


@pytest.mark.parametrize("width", WIDTHS)
def test_browse(browser: Browser, drawn: Path, serve: Callable[..., Any], width: str) -> None:
    page = opened(browser, width, "dark" if width == "phone" else "light")
    page.goto(serve(drawn).address)
    expect(page.locator("#found")).to_contain_text("1 to 20 of")
    every = found(page)
    assert every == sum(row.get("sample/candidates", 0) for row in Record.of(drawn).rows)
    expect(page.locator("#cards img")).to_have_count(20)
    page.wait_for_timeout(500)
    assert unloaded(page) == []
    page.get_by_label("Prompt contains").fill("seven")
    page.get_by_label("Prompt contains").press("Enter")
    expect(page.locator("#found")).not_to_contain_text(f"of {every:,}")
    assert 0 < found(page) < every
    assert all("seven" in text for text in page.locator("#cards .rt-prompt").all_inner_texts())
    page.wait_for_timeout(500)
    assert unloaded(page) == []
    assert serious(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    page.screenshot(path=PICTURES / f"pictures-browse-{width}.png", full_page=True)


def test_pairs_of_pictures(browser: Browser, drawn: Path, tmp_path: Path, serve: Callable[..., Any]) -> None:
    server = serve(drawn, "--blind", "--out", tmp_path)
    ann, bob = opened(browser), opened(browser, "phone", "dark")
    for page, name in ((ann, "Ann"), (bob, "Bob")):
        begin(page, server.address, name)
        expect(page.locator("#pair img")).to_have_count(2)
        page.wait_for_timeout(500)
        assert unloaded(page) == []
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    ann.screenshot(path=PICTURES / "pictures-judge-desktop.png", full_page=True)
    bob.screenshot(path=PICTURES / "pictures-judge-phone.png", full_page=True)
    for number in range(1, 4):
        vote(ann, "The first is better", number)
        vote(bob, "The second is better", number)
    cast = Ballots(tmp_path / "votes.db").votes()
    assert sorted((one.rater, one.vote) for one in cast) == [("Ann", "first")] * 3 + [("Bob", "second")] * 3
    assert len({one.pair for one in cast}) == 3
