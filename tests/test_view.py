"""The shelf against a search by hand, ballots under many hands, agreement against a published table."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftune import files, table
from raftune.errors import UserError
from raftune.evaluate import votes
from raftune.evaluate.agreement import krippendorff
from raftune.types import Candidate, Prompt, Scored, Text

pytest.importorskip("duckdb")
from raftune.ui.ballots import Ballots, rater_of
from raftune.ui.shelf import Question, Shelf
from raftune.ui.trial import Trial, prepared

CODEC = table.TextCodec()
WORDS = ("100 % right", "A_b", "back\\slash", "plain", "PLAIN too", "émigré")


def of_round(number: int) -> list[Scored]:
    return [
        Scored(
            Candidate(
                Prompt(f"p{p}", f"Prompt {p}, {WORDS[p]}"),
                k,
                Text(f"{WORDS[(p + k) % 6]} {k}"),
                ("policy", "teacher")[k % 2],
            ),
            None if (p, k) == (2, 1) else ((5 * p + 3 * k + number) % 7) / 7 - 0.4,
        )
        for p in range(6)
        for k in range(4)
    ]


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    for number in (1, 2):
        chosen = {(f"p{p}", number) for p in range(6)}
        table.write_scored(tmp_path / "rounds" / f"{number:04d}" / "scored.parquet", of_round(number), CODEC, chosen)
    half = tmp_path / "rounds" / "0003" / "scored.parquet"
    half.parent.mkdir()
    half.write_bytes(b"PAR1 and no more")
    return Shelf(tmp_path)


def texts(shelf: Shelf, question: Question) -> list[tuple[int, str, int]]:
    hits = shelf.find(question)
    return [(row["round"], row["prompt_id"], row["index"]) for row in shelf.page(hits, 0, len(hits))]


def by_hand(fits: Callable[[int, Scored], bool]) -> list[tuple[int, str, int]]:
    found = [(number, one) for number in (1, 2) for one in of_round(number) if fits(number, one)]
    return [(number, one.candidate.prompt.id, one.candidate.index) for number, one in found]


@pytest.mark.parametrize(
    ("question", "fits"),
    [
        (Question(), lambda number, one: True),
        (Question(round=2), lambda number, one: number == 2),
        (Question(round=3), lambda number, one: False),
        (Question(source="teacher"), lambda number, one: one.candidate.source == "teacher"),
        (Question(chosen=True), lambda number, one: one.candidate.index == number),
        (Question(chosen=False, round=1), lambda number, one: number == 1 and one.candidate.index != 1),
        (Question(low=0.0, high=0.2), lambda number, one: one.reward is not None and 0 <= one.reward <= 0.2),
        (Question(prompt="p3"), lambda number, one: one.candidate.prompt.id == "p3"),
        (Question(prompt="PROMPT 4"), lambda number, one: one.candidate.prompt.id == "p4"),
        *(
            (Question(text=word), lambda number, one, word=word: word.lower() in str(one.candidate.output).lower())
            for word in ("%", "_", "\\", "plain", "ÉMIGRÉ", "' OR 1=1 --", "0 %")
        ),
    ],
)
def test_found_is_what_a_search_by_hand_finds(
    shelf: Shelf, question: Question, fits: Callable[[int, Scored], bool]
) -> None:
    assert texts(shelf, question) == by_hand(fits)


def test_order_and_pages(shelf: Shelf) -> None:
    hits = shelf.find(Question(order="highest reward first"))
    pages = [shelf.page(hits, start, 5) for start in range(0, len(hits), 5)]
    rewards = [row["reward"] for page in pages for row in page]
    known = sorted((one.reward for n in (1, 2) for one in of_round(n) if one.reward is not None), reverse=True)
    assert rewards == [*known, None, None]
    lowest = shelf.page(shelf.find(Question(order="lowest reward first")), 0, 3)
    assert [row["reward"] for row in lowest] == known[::-1][:3]


def test_rows_are_whole(shelf: Shelf) -> None:
    (row,) = shelf.page(shelf.find(Question(round=1, prompt="p0", chosen=True)), 0, 9)
    one = next(one for one in of_round(1) if table.key_of(one) == ("p0", 1))
    assert (row["output"], row["prompt"], row["reward"]) == (
        str(one.candidate.output),
        one.candidate.prompt.content,
        one.reward,
    )
    assert row["folder"] == shelf.run / "rounds" / "0001"
    assert shelf.rounds("scored") == [1, 2] and shelf.sources("scored") == ["policy", "teacher"]
    assert len(shelf.find(Question(kind="heldout"))) == 0


def test_a_new_round_is_found(shelf: Shelf) -> None:
    assert len(shelf.find(Question())) == 48
    table.write_scored(shelf.run / "rounds" / "0003" / "scored.parquet", of_round(3), CODEC, set())
    assert len(shelf.find(Question())) == 72


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no rounds"):
        Shelf(tmp_path)


# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example C: four observers, twelve units
OBSERVED = """
1 2 3 3 2 1 4 1 2 . . .
1 2 3 3 2 2 4 1 2 5 . 3
. 3 3 3 2 3 4 2 2 5 1 .
1 2 3 3 2 4 4 1 2 5 1 .
"""


def test_agreement_of_a_published_table() -> None:
    rows = [line.split() for line in OBSERVED.strip().splitlines()]
    units = [[label for label in unit if label != "."] for unit in zip(*rows, strict=True)]
    assert krippendorff(units) == pytest.approx(0.743, abs=5e-4)


def test_agreement_at_its_ends() -> None:
    assert krippendorff([["a", "a"], ["b", "b", "b"], ["a"]]) == 1
    assert krippendorff([["a", "b"], ["b", "a"]]) == pytest.approx(1 - 3 * 4 / 8)  # less than chance
    assert krippendorff([["a", "a"], ["a", "a"]]) is None and krippendorff([["a"], []]) is None


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4), max_size=6))
def test_agreement_against_all_pairs(units: list[list[str]]) -> None:
    """By its definition: observed over expected disagreement, counted pair by pair."""
    rated = [unit for unit in units if len(unit) > 1]
    every = [label for unit in rated for label in unit]
    observed = sum(sum(a != b for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in rated)
    expected = sum(a != b for a, b in itertools.permutations(every, 2))
    alpha = krippendorff(units)
    if not expected:
        assert alpha is None
    else:
        assert alpha == pytest.approx(1 - (observed / len(every)) / (expected / (len(every) * (len(every) - 1))))


def test_a_second_click_counts_once_and_a_second_thought_counts(tmp_path: Path) -> None:
    ballots = Ballots(tmp_path / "votes.db")
    ballots.cast("ann", "one", "first", "clear")
    ballots.cast("ann", "one", "first", "clear")
    assert [(v.rater, v.pair, v.vote, v.note) for v in ballots.votes()] == [("ann", "one", "first", "clear")]
    ballots.cast("ann", "one", "tie")
    ballots.cast("bob", "one", "second")
    assert [(v.rater, v.vote) for v in Ballots(tmp_path / "votes.db").votes()] == [("ann", "tie"), ("bob", "second")]
    assert [v.vote for v in ballots.votes("bob")] == ["second"]
    with pytest.raises(ValueError, match="a vote is one of"):
        ballots.cast("ann", "two", "both")
    assert ballots.export(tmp_path / "votes.jsonl") == 2
    lines = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    assert lines[1] == {"id": "one", "vote": "second", "rater": "bob", "note": ""}


def _vote_a_lot(path: Path, rater: str) -> None:
    ballots = Ballots(path)
    for pair in range(25):
        ballots.cast(rater, str(pair), "tie")


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    Ballots(path)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        apart = pool.starmap_async(_vote_a_lot, [(path, "c"), (path, "d")])
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda rater: _vote_a_lot(path, rater), ["a", "b", "a", "b"]))
        apart.get(timeout=120)
    votes = Ballots(path).votes()
    assert len(votes) == 4 * 25 == len({(one.rater, one.pair) for one in votes})


def test_names() -> None:
    assert rater_of("  Ann \n Lee ") == "Ann Lee"
    for name in ("", "  ", "x" * 81):
        with pytest.raises(UserError, match="your name"):
            rater_of(name)


def test_a_name_is_text(tmp_path: Path) -> None:
    app = pytest.importorskip("raftune.ui.app")
    told = app.seen(a_trial(tmp_path), app.Cards(), "<b>$x$", None)[0]
    assert told == "&lt;b&gt;&#36;x&#36;: 0 of 6 pairs"


def test_a_file_that_holds_no_votes(tmp_path: Path) -> None:
    (tmp_path / "votes.db").write_text("something else, and long enough to be no header of a database")
    with pytest.raises(UserError, match="is it a file of votes"):
        Ballots(tmp_path / "votes.db")


def a_trial(folder: Path, pairs: int = 6) -> Trial:
    one, two = (
        [Scored(Candidate(Prompt(f"p{p}", f"Prompt {p}"), 0, Text(f"{name} says {p}")), 0.0) for p in range(pairs)]
        for name in ("one", "two")
    )
    votes.write(folder, list(zip(one, two, strict=True)), seed=3)
    return Trial(folder)


def test_a_run_whose_start_is_best_has_nothing_to_judge(tmp_path: Path) -> None:
    here = tmp_path / "run" / "rounds" / "0000"
    said = [Scored(Candidate(Prompt(f"p{p}", "Prompt"), 0, Text(f"answer {p}")), 0.0) for p in range(3)]
    table.write_scored(here / "heldout.parquet", said, CODEC)
    files.write_json(here / "metrics.json", {"round": 0, "heldout/reward_mean": 0.5})
    with pytest.raises(UserError, match="run round 0 and run round 0: nothing is left to judge"):
        prepared(tmp_path / "blind", tmp_path / "run", None)
    assert not (tmp_path / "blind").exists()


def test_a_rater_goes_on_where_they_stopped(tmp_path: Path) -> None:
    trial, long_ago = a_trial(tmp_path), 0.0
    order = [one["id"] for one in trial.pairs]
    for name in order[:3]:
        shown = trial.next_for("ann")
        assert shown is not None and shown["id"] == name
        assert trial.vote("ann", name, "tie", " so so ", long_ago)
    again = Trial(tmp_path)  # the server was started anew
    assert [vote.pair for vote in again.given("ann")] == order[:3] and again.given("ann")[0].note == "so so"
    shown = again.next_for("ann")
    assert shown is not None and shown["id"] == order[3]
    first = again.next_for("bob")
    assert first is not None and first["id"] == order[0]
    for name in order:
        again.vote("ann", name, "first", "", long_ago)
    assert again.next_for("ann") is None


def test_the_second_click_of_two_is_no_vote_on_the_next_pair(tmp_path: Path) -> None:
    trial = a_trial(tmp_path)
    assert not trial.vote("ann", trial.pairs[0]["id"], "first", "", time.time())
    assert trial.given("ann") == []
    with pytest.raises(UserError, match="not of this comparison"):
        trial.vote("ann", "another", "first", "", 0.0)


def test_results_are_those_of_the_exported_votes(tmp_path: Path) -> None:
    """One says A where it knows, two always take the first: as `raftune compare --by votes.jsonl` reads it."""
    trial = a_trial(tmp_path, 8)
    first = {name: row["first"] for name, row in votes.key_of(tmp_path).items()}
    for one in trial.pairs:
        trial.vote("knows", one["id"], "first" if first[one["id"]] == "a" else "second", "", 0.0)
        trial.vote("lazy", one["id"], "first", "", 0.0)
    total, counts = trial.results()
    a_first = sum(side == "a" for side in first.values())
    assert 0 < a_first < 8
    assert total is not None and (total.win, total.tie, total.loss) == (a_first, 8 - a_first, 0)
    assert counts["votes"] == 16 and counts["raters_agree"] == a_first
    path, count = trial.export()
    assert count == 16
    sides = [
        [Scored(Candidate(Prompt(f"p{p}", f"Prompt {p}"), 0, Text(f"{name} says {p}")), 0.0) for p in range(8)]
        for name in ("one", "two")
    ]
    outcomes, read = votes.read(path, tmp_path, list(zip(*sides, strict=True)))
    assert sum(outcome == 1 for outcome in outcomes) == a_first and read == counts
