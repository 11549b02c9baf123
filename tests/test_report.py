"""report.html against the tables and figures that it was made from."""

from __future__ import annotations

import base64
import io
import re
import statistics
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import yaml
from test_cli import call

from raftune import files, table
from raftune.errors import UserError
from raftune.picture import Picture, PictureCodec
from raftune.report import charts, page
from raftune.report.record import Record
from raftune.sides import side
from raftune.types import Candidate, Prompt, Scored, Text

CODEC = table.TextCodec()
RECIPE = {
    "modality": "text",
    "model": "some-model",
    "prompts": {"path": "prompts.jsonl"},
    "reward": [{"use": "vader", "name": None, "weight": 1.0}],
    "sample": {"prompts_per_round": 4, "k": 3},
    "select": {"rule": "best"},
    "rounds": 2,
    "seed": 0,
}


def scored(number: int, prompts: int = 4, k: int = 3, text: str = "answer") -> list[Scored]:
    """Rewards that differ, one of them missing."""
    return [
        Scored(
            Candidate(Prompt(f"p{p}", f"Prompt {p}"), index, Text(f"{text} {p}/{index} of round {number}")),
            None if (p, index) == (1, 1) else ((7 * p + 5 * index + 3 * number) % 11) / 10 - 0.5,
        )
        for p in range(prompts)
        for index in range(k)
    ]


def a_run(folder: Path, seed: int = 0, rounds: int = 2, outputs: Sequence[Scored] | None = None, **recipe: Any) -> Path:
    """A run directory, made by hand; each figure another number."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**RECIPE, "seed": seed, **recipe}))
    for number in range(rounds + 1):
        here = folder / "rounds" / f"{number:04d}"
        table.write_scored(here / "heldout.parquet", scored(number, text="held"), CODEC)
        row: dict[str, Any] = {"round": number, "heldout/reward_mean": 0.11 + 0.2 * number + 0.05 * seed}
        row |= {"heldout/kl": 0.7 * number, "heldout/reward_se": 0.03, "heldout/distinct_2": 0.9 - 0.1 * number}
        row |= {"heldout/best_of_2": 0.5 + 0.1 * number, "time/evaluate_s": 2.0}
        if number:
            table.write_scored(here / "scored.parquet", outputs or scored(number), CODEC, {("p0", 0)})
            row |= {"sample/reward_mean": 0.1 * number, "chosen/reward_mean": 0.4, "time/round_s": 10.0}
            row |= {"time/sample_s": 4.0, "memory/sample_bytes": 3_000_000_000, "chosen/source/policy": 1.0}
        files.write_json(here / "metrics.json", row)
    return folder


class Seen(HTMLParser):
    """The tags of a page, and the text in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def made(path: Path, *runs: Path, live: bool = False) -> Seen:
    page.write(path, [Record.of(run) for run in runs], live)
    return Seen(path)


def test_page_tells_the_figures_of_the_run(tmp_path: Path) -> None:
    seen = made(tmp_path / "report.html", a_run(tmp_path / "run"))
    assert "0.11 → 0.51" in seen.text  # held-out reward before, and at the best round
    assert "round 2 of 2; the best so far is round 2" in seen.text
    assert "0.310" in seen.text and "vader" in seen.text
    titles = ("Reward by round", "What the reward cost in KL", "Diversity", "Rewards of all candidates")
    for title in (*titles, "Best of n, held out", "Who won", "Where the time went", "Peak memory by stage"):
        assert title in seen.text
    assert "26 seconds in all" not in seen.text and "14 seconds in all" in seen.text  # stages: 2 × 4 + 3 × 2


def test_what_only_watches_is_shown_on_every_set_of_prompts(tmp_path: Path) -> None:
    """Also where one prompt leaves no standard error; a run without monitors shows the reward on further prompts."""
    run, bare = a_run(tmp_path / "run"), a_run(tmp_path / "bare")
    for number in range(3):
        told = {"heldout/judge": 0.25 * number, "others/judge": 0.75, "others/judge_se": 0.01, "others/kl": 1.0}
        told |= {
            "others/reward_mean": -0.125 * number,
            "heldout/reward/vader": 0.5,
            "sample/source/me/reward_mean": 1.0,
        }
        path = run / "rounds" / f"{number:04d}" / "metrics.json"
        files.write_json(path, files.read_json(path) | told)
        path = bare / "rounds" / f"{number:04d}" / "metrics.json"
        files.write_json(path, files.read_json(path) | {"others/reward_mean": -0.125 * number})
    record, without = Record.of(run), Record.of(bare)
    assert (record.monitors, record.watched) == (["heldout/judge"], ["heldout/judge", "others/judge"])
    assert (without.monitors, without.watched) == ([], ["others/reward_mean"])
    seen = made(tmp_path / "report.html", run)
    assert "judge 0 → 0.5" in seen.text and "others/judge 0.75 → 0.75" in seen.text
    assert "What only watches" in seen.text and "judge: 0 in round 0, 0.5 in round 2." in seen.text
    assert "Reward on further prompts" in made(tmp_path / "bare.html", bare).text


def test_a_ridge_holds_every_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most rewards are the highest: that bin is drawn, too, and as wide as the others."""
    rewards = [0.0, 0.5, *[1.0] * 10]
    outputs = [Scored(Candidate(Prompt("p", "P"), at, Text("a")), reward) for at, reward in enumerate(rewards)]
    axes: list[Any] = []
    keep = charts.drawn
    monkeypatch.setattr(charts, "drawn", lambda *told: keep(*told[:3], lambda one: (told[3](one), axes.append(one))))
    charts.of_run(Record.of(a_run(tmp_path / "run", outputs=outputs, rounds=1)))
    (ridge,) = next(one.patches for one in axes if one.get_xlabel() == "reward of a candidate")
    heights, edges, base = ridge.get_data()
    shares = (heights - base) / (heights - base).max()
    assert (edges[0], edges[-1]) == (0, 1)
    assert shares[-1] == 1 and shares.sum() == pytest.approx(1.2)
    assert ridge.get_path().vertices[:, 0].max() == 1  # up to the end of the last bin


@pytest.mark.parametrize(("source", "kind", "side"), [(16, "png", 160), (400, "webp", 160), (400, "webp", 208)])
def test_pictures_at_a_size_to_look_at(source: int, kind: str, side: int) -> None:
    """A small one keeps its pixels, each as a square; a large one looks like itself."""
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (source // 4, 4), np.uint8)).convert("RGB")
    image = image.resize((source, source), PIL.Image.Resampling.NEAREST)
    address = page.data_address(image, side)
    assert address is not None and address.startswith(f"data:image/{kind};base64,")
    shown = PIL.Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
    assert shown.size == (side, side)
    if kind == "png":
        assert np.array_equal(np.asarray(shown), np.asarray(image).repeat(10, 0).repeat(10, 1))
    else:
        away = np.abs(np.asarray(shown, float) - np.asarray(image.resize((side, side), PIL.Image.Resampling.LANCZOS)))
        assert away.mean() < 16


def test_nothing_beside_the_page_is_needed(tmp_path: Path) -> None:
    seen = made(tmp_path / "report.html", a_run(tmp_path / "run"))
    for tag, attributes in seen.tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:image/")), (tag, address)
    assert not re.search(r"url\((?!#)|@import", seen.html)
    assert not [tag for tag, _ in seen.tags if tag in {"link", "iframe", "script"}]


def test_charts_take_the_page_colours_and_keep_apart(tmp_path: Path) -> None:
    seen = made(tmp_path / "report.html", a_run(tmp_path / "run"))
    assert not re.findall(r"#0304\d\d|#010101|#020202", seen.html)
    ids = [attributes["id"] for _, attributes in seen.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 50
    asked = re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', seen.html)
    assert asked and set(asked) <= set(ids)


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", "</pre><img src=x onerror=alert(1)>", "&lt;b&gt; & \x07"]
)
def test_what_a_model_wrote_is_text(tmp_path: Path, evil: str) -> None:
    outputs = [
        Scored(Candidate(Prompt("p", f"{evil} prompt"), index, Text(f"{evil} said {index}")), float(index))
        for index in range(3)
    ]
    run = a_run(tmp_path / "run", outputs=outputs, model=evil)
    for number in range(3):
        table.write_scored(run / "rounds" / f"{number:04d}" / "heldout.parquet", outputs, CODEC)
    seen = made(tmp_path / "report.html", run)
    assert not [tag for tag, _ in seen.tags if tag in {"script", "img"}]
    as_read = evil.replace("\x07", "�")
    assert f"{as_read} said 2" in seen.text and f"{as_read} prompt" in seen.text


def test_before_and_after_are_the_same_draws(tmp_path: Path) -> None:
    record = Record.of(a_run(tmp_path / "run"))
    pairs = [pair for some in record.before_and_after(2, prompts=3, each=2) for pair in some]
    assert len(pairs) == 6 and len({before.candidate.prompt.id for before, _ in pairs}) == 3
    expected = {number: {table.key_of(one): one for one in scored(number, text="held")} for number in (0, 2)}
    for before, after in pairs:
        key = table.key_of(before)
        assert table.key_of(after) == key
        for one, number in ((before, 0), (after, 2)):
            assert one.candidate.output.text == expected[number][key].candidate.output.text
            assert one.reward == expected[number][key].reward


def test_extremes_against_sorting(tmp_path: Path) -> None:
    best, worst = Record.of(a_run(tmp_path / "run")).extremes(2, 3)
    by_prompt: dict[str, list[float]] = {}
    for one in scored(2):
        if one.reward is not None:
            by_prompt.setdefault(one.candidate.prompt.id, []).append(one.reward)
    assert [one.reward for one in best] == sorted(map(max, by_prompt.values()), reverse=True)[:3]
    assert [one.reward for one in worst] == sorted(map(min, by_prompt.values()))[:3]


def test_what_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    damaged = run / "rounds" / "0001" / "scored.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (run / "rounds" / "0002" / "heldout.parquet").unlink()
    (run / "rounds" / "0003" / "candidates").mkdir(parents=True)  # a round that is being sampled
    (run / "rounds" / "0003" / "candidates" / ".00000.parquet.1.part").write_bytes(b"half")
    seen = made(tmp_path / "report.html", run)
    assert "What could not be read" in seen.text and str(damaged) in seen.text
    assert "Reward by round" in seen.text and "before and after" not in seen.text


def test_pictures_that_are_gone_are_left_out(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", modality="image")
    for number in range(3):
        drawn = Picture.of(PIL.Image.new("RGB", (8, 8), (60 * number, 0, 0)))
        held = [Scored(Candidate(Prompt("p", "a cow"), 0, drawn), 0.5)]
        table.write_scored(run / "rounds" / f"{number:04d}" / "heldout.parquet", held, PictureCodec())
        (run / "rounds" / f"{number:04d}" / "scored.parquet").unlink(missing_ok=True)
    next((run / "rounds" / "0000").rglob("*.png")).unlink()
    seen = made(tmp_path / "report.html", run)
    assert "missing" in seen.text and sum(tag == "img" for tag, _ in seen.tags) == 1


def test_a_long_prompt_is_cut_as_an_output_is(tmp_path: Path) -> None:
    long = "word " * page.LONGEST
    for content in (long, ({"role": "user", "content": long},)):
        assert len(page.asked(content)) <= page.LONGEST + len(" … (100,000 characters in all)")


def test_a_run_of_a_newer_version(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", telepathy={"on": True}, reward=[{"use": "vader", "weight": 1.0, "new": 3}])
    row = files.read_json(run / "rounds" / "0001" / "metrics.json") | {"heldout/telepathy": [1, 2], "auras": "many"}
    files.write_json(run / "rounds" / "0001" / "metrics.json", row)
    assert "0.11 → 0.51" in made(tmp_path / "report.html", run).text


def test_only_a_run_that_goes_on_is_followed(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    assert "location.reload" in made(tmp_path / "a.html", run, live=True).html
    assert "location.reload" not in made(tmp_path / "b.html", run).html


def test_runs_that_differ_by_seed_stand_together(tmp_path: Path) -> None:
    seeds = [a_run(tmp_path / f"seed-{seed}", seed=seed) for seed in range(3)]
    other = a_run(tmp_path / "other", seed=9, rounds=1, select={"rule": "random"})
    groups = page.grouped([Record.of(run) for run in (*seeds, other)])
    assert {name: len(members) for name, members in groups.items()} == {"seed-0": 3, "other": 1}
    seen = made(tmp_path / "comparison.html", *seeds, other)
    values = [0.51 + 0.05 * seed for seed in range(3)]
    assert f"{statistics.mean(values):.3g} ± {statistics.stdev(values):.3g}" in seen.text
    assert "select.rule best best best random" in seen.text
    assert "held 0/0 of round 2" in seen.text and "held 0/0 of round 1" in seen.text


def test_a_run_has_one_colour_in_all_charts(tmp_path: Path) -> None:
    one, other = a_run(tmp_path / "one"), a_run(tmp_path / "other", select={"rule": "top:0.1"})
    for path in one.glob("rounds/*/metrics.json"):
        files.write_json(path, {key: value for key, value in files.read_json(path).items() if key != "heldout/kl"})
    made = charts.of_runs(page.grouped([Record.of(one), Record.of(other)]))
    kl = next(chart for chart in made if chart.title.startswith("KL"))
    assert "var(--c2)" in kl.svg and "var(--c1)" not in kl.svg


def test_runs_of_one_name_do_not_merge(tmp_path: Path) -> None:
    one, other = a_run(tmp_path / "a" / "run"), a_run(tmp_path / "b" / "run", model="another")
    assert len(page.grouped([Record.of(one), Record.of(other)])) == 2


def test_pictures_are_compared_by_the_sheet(tmp_path: Path) -> None:
    """Of two runs of pictures the same noise stands side by side, so many a prompt; of texts one."""
    runs = []
    for name, seed in (("one", 1), ("other", 2)):
        run = a_run(tmp_path / name, select={"rule": name}, modality="image")
        for number in range(3):
            draw = np.random.default_rng((seed, number))
            images = [PIL.Image.fromarray(draw.integers(0, 255, (8, 8, 3), np.uint8)) for _ in range(12)]
            held = [
                Scored(Candidate(Prompt("p", "a cow"), at, Picture.of(image)), at / 64 + number)
                for at, image in enumerate(images)
            ]
            table.write_scored(run / "rounds" / f"{number:04d}" / "heldout.parquet", held, PictureCodec())
        runs.append(run)
    seen = made(tmp_path / "pictures.html", *runs)
    pictures = [told["src"] for tag, told in seen.tags if tag == "img"]
    assert len(pictures) == len(set(pictures)) == 3 * page.PICTURES  # before, one, other
    assert [told["alt"] for tag, told in seen.tags if tag == "img"][:2] == [
        "a cow, reward +0.000",
        "a cow, reward +0.016",
    ]
    texts = made(tmp_path / "texts.html", a_run(tmp_path / "a"), a_run(tmp_path / "b", select={"rule": "b"}))
    assert texts.text.count("held 0/0 of round 0") == 1 and "held 0/1" not in texts.text


@pytest.mark.parametrize("text", ["{", "[]", "5"])
def test_damaged_figures_of_one_round(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """The others are compared and reported all the same."""
    run = a_run(tmp_path / "run")
    (run / "rounds" / "0001" / "metrics.json").write_text(text)
    assert side(run).number == 2 and [one.reward for one in side(run).scored] == [one.reward for one in scored(2)]
    assert "0001/metrics.json: damaged" in caplog.text
    assert "0.11 → 0.51" in made(tmp_path / "report.html", run).text


def test_the_command_writes_the_page_or_says_what_is_no_run(tmp_path: Path) -> None:
    run, out = a_run(tmp_path / "run"), tmp_path / "both.html"
    assert call("report", run).exit_code == 0 and "0.11 → 0.51" in Seen(run / page.NAME).text
    refused = call("report", run / page.NAME)  # the page instead of the run
    assert refused.exit_code == 2 and "report.html: holds no rounds; give a run directory" in refused.output
    assert call("report", run, a_run(tmp_path / "other", model="m"), "--out", out).exit_code == 0
    assert "Runs compared" in Seen(out).text
    twice = call("report", run, run)
    assert twice.exit_code == 2 and "is named twice" in twice.output


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no rounds"):
        Record.of(tmp_path)
    (tmp_path / "rounds" / "0001").mkdir(parents=True)
    with pytest.raises(UserError, match="no round has figures yet"):
        Record.of(tmp_path)
