"""Report and app in a real browser: what a person sees, clicks and loses when the server dies."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from tests_ui.conftest import PICTURES
from tests_ui.looks import WIDTHS, begin, found, opened, serious, vote

from raftune.report import page as report
from raftune.report.record import Record
from raftune.ui.ballots import Ballots


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report(browser: Browser, run: Path, tmp_path: Path, width: str, scheme: str) -> None:
    path = tmp_path / "report.html"
    report.write(path, [Record.of(run)])
    page = opened(browser, width, scheme)
    page.goto(path.as_uri())
    expect(page.locator("h1")).to_have_text(run.name)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    assert page.foreign == []  # type: ignore[attr-defined]
    assert serious(page) == []
    page.screenshot(path=PICTURES / f"report-{width}-{scheme}.png", full_page=True)


def test_browse(browser: Browser, run: Path, serve: Callable[..., Any]) -> None:
    server = serve(run)
    page = opened(browser)
    page.goto(server.address)
    expect(page.locator("#found")).to_contain_text("1 to 20 of")
    every = found(page)
    assert every == sum(row.get("sample/candidates", 0) for row in Record.of(run).rows)
    page.get_by_role("button", name="Later").click()
    expect(page.locator("#found")).to_contain_text("21 to 40 of")
    page.get_by_label("Answer contains").fill("love")
    page.get_by_label("Answer contains").press("Enter")
    expect(page.locator("#found")).not_to_contain_text(f"of {every:,}")
    assert 0 < found(page) < every
    for text in page.locator("#cards .rt-text:not(.rt-prompt)").all_inner_texts():
        assert "love" in text.lower()
    assert page.foreign == []  # type: ignore[attr-defined]
    assert serious(page) == []
    page.screenshot(path=PICTURES / "browse-desktop.png", full_page=True)
    page.get_by_label("Reward at least").fill("0.9")
    page.get_by_label("Reward at least").press("Enter")
    expect(page.locator("#cards .rt-card").first).to_contain_text("reward +0.9")
    page.get_by_label("Reward at least").fill("much")
    page.get_by_label("Reward at least").press("Enter")
    expect(page.get_by_text("'much' is no number")).to_be_visible()
    phone = opened(browser, "phone", "dark")
    phone.goto(server.address)
    expect(phone.locator("#found")).to_contain_text("of")
    assert serious(phone) == []
    assert phone.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    phone.screenshot(path=PICTURES / "browse-phone.png")
    assert server.stop() == 0


def test_two_raters_a_crash_and_every_vote(
    browser: Browser, run: Path, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    server = serve(run, "--blind", "--out", tmp_path)
    ann, bob = opened(browser), opened(browser, "phone", "dark")
    begin(ann, server.address, "Ann")
    begin(bob, server.address, "Bob")
    assert serious(ann) == serious(bob) == []
    ann.screenshot(path=PICTURES / "judge-desktop.png", full_page=True)
    for number in range(1, 6):
        vote(ann, "The first is better", number)
        vote(bob, "Neither" if number % 2 else "The second is better", number)
    server.kill()
    again = serve(run, "--blind", "--out", tmp_path)
    for page, name in ((ann, "Ann"), (bob, "Bob")):
        begin(page, again.address, name)
        expect(page.locator("#state")).to_contain_text(f"{name}: 5 of")
    for number in range(6, 11):
        vote(ann, "The second is better", number)
        vote(bob, "Neither", number)
    bob.screenshot(path=PICTURES / "judge-phone.png", full_page=True)
    ann.get_by_role("button", name="Change my last vote").click()
    vote(ann, "Neither", 10)
    ann.wait_for_timeout(1500)  # its count was 10 before, too
    cast = Ballots(tmp_path / "votes.db").votes()
    said = {name: [one.vote for one in cast if one.rater == name] for name in ("Ann", "Bob")}
    assert said["Ann"] == ["first"] * 5 + ["second"] * 4 + ["tie"]
    assert said["Bob"] == ["tie", "second", "tie", "second", "tie", *["tie"] * 5]
    assert len({one.pair for one in cast}) == 10  # both judged the same ten
    assert ann.foreign == bob.foreign == []  # type: ignore[attr-defined]


def test_a_double_click_is_one_vote(browser: Browser, run: Path, tmp_path: Path, serve: Callable[..., Any]) -> None:
    page = opened(browser)
    begin(page, serve(run, "--blind", "--out", tmp_path).address, "Cy")
    time.sleep(0.5)
    page.get_by_role("button", name="The first is better").dblclick()
    expect(page.locator("#state")).to_contain_text(": 1 of")
    time.sleep(1)
    expect(page.locator("#state")).to_contain_text(": 1 of")
    assert len(Ballots(tmp_path / "votes.db").votes()) == 1


def test_others_need_the_token(browser: Browser, run: Path, serve: Callable[..., Any]) -> None:
    page = opened(browser)
    page.goto(serve(run, "--token", "open sesame").address)
    page.get_by_label("username").fill("Ann")
    page.get_by_label("password").fill("guess")
    page.get_by_role("button", name="Login").click()
    expect(page.get_by_text("Incorrect")).to_be_visible()
    page.get_by_label("username").fill("Ann")
    page.get_by_label("password").fill("open sesame")
    page.get_by_role("button", name="Login").click()
    expect(page.locator("#found")).to_contain_text("1 to 20 of")
