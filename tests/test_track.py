"""Experiment trackers: what each of them, read by its own means, holds of a run, against what lies in the run."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_cli import REWARDS, call, process, write_recipe
from test_trainer import asked, config, long

from raftune import RAFTTrainer, UserError, table
from raftune.config import TextRecipe
from raftune.entry import Entry, Sample
from raftune.pick.trackers import run_name, trackers
from raftune.recipe import load, parse
from raftune.track.tensorboard import TensorBoard, markdown
from raftune.tracking import Tracking, entry

TRACKER = """
import json, os, signal
from pathlib import Path
from accelerate.tracking import GeneralTracker

class Lines(GeneralTracker):
    name, requires_logging_directory, tracker = "lines", True, None

    def __init__(self, project, folder, kill=-1, fail=-1):
        super().__init__()
        self.path, self.kill, self.fail = Path(folder) / f"{project}.jsonl", kill, fail

    def store_init_configuration(self, values):
        self.write({"settings": values})

    def log(self, values, step=None):
        if step == self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.fail:
            raise ConnectionError("no route to host")
        self.write({"step": step, **values})

    def write(self, line):
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\\n")
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A folder with a recipe and its finished run of two rounds, of which nobody was told."""
    folder = tmp_path_factory.mktemp("finished")
    prompts = [{"id": f"p{i}", "prompt": f"The | film\nnumber {i}"} for i in range(24)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (folder / "my_rewards.py").write_text(REWARDS)
    (folder / "my_tracker.py").write_text(TRACKER)
    write_recipe(folder, tiny, report=False)
    done = call("run", folder / "recipe.yaml", "--out", folder / "run")
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    """A copy."""
    return Path(shutil.copytree(finished, tmp_path / "work", symlinks=True))


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def numbers(run: Path) -> dict[str, dict[int, float]]:
    """Of metrics.jsonl: figure → round → value."""
    found: dict[str, dict[int, float]] = {}
    for row in rows(run):
        for name, value in row.items():
            if isinstance(value, int | float):
                found.setdefault(name, {})[row["round"]] = value
    return found


def rewards(run: Path, number: int, name: str) -> list[float]:
    path = run / "rounds" / f"{number:04d}" / f"{name}.parquet"
    return [one.reward for one in table.read_scored(path, table.TextCodec()) if one.reward is not None]


def events(run: Path) -> EventAccumulator:
    """What TensorBoard itself reads."""
    read = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "histograms": 0, "tensors": 0, "images": 0})
    return read.Reload()


def check_events(run: Path) -> None:
    """Every figure of every round, each once, and the rewards of all candidates."""
    read, want = events(run), numbers(run)
    assert set(read.Tags()["scalars"]) == set(want)
    for name, by_round in want.items():
        found = read.Scalars(name)
        assert [one.step for one in found] == sorted(by_round), name
        assert [one.value for one in found] == pytest.approx([by_round[one.step] for one in found], rel=1e-6), name
    for name, file in (("sample", "scored"), ("chosen", "chosen"), ("heldout", "heldout")):
        found = read.Histograms(f"{name}/rewards")
        assert [one.step for one in found] == [number for number in (0, 1, 2) if number or name == "heldout"]
        for one in found:
            values = rewards(run, one.step, file)
            assert one.histogram_value.num == sum(one.histogram_value.bucket) == len(values)
            assert one.histogram_value.sum == pytest.approx(sum(values))


def test_tensorboard_holds_the_run_once(work: Path) -> None:
    """A finished run is told whole by the command that would resume it; a second one adds nothing."""
    for _ in range(2):
        told = call("run", work / "recipe.yaml", "--out", work / "run", "--set", "track=tensorboard")
        assert told.exit_code == 0, told.output
        check_events(work / "run")
    texts = events(work / "run").Tensors("heldout/samples/text_summary")
    assert [one.step for one in texts] == [0, 1, 2]
    lines = texts[-1].tensor_proto.string_val[0].decode().splitlines()
    assert lines[0] == "| prompt | before | after | reward |" and len(lines) == 2 + 6
    assert all(len(re.findall(r"\|", line)) == 5 for line in lines)
    assert "The &#124; film<br>number" in lines[2]


def check_trackio(folder: Path, run: Path) -> None:
    """The same in trackio's own file."""
    with sqlite3.connect(folder / "raftune.db") as file:
        found = file.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert [(name, step) for name, step, _ in found] == [("run", 0), ("run", 1), ("run", 2)]
    for (_, number, told), row in zip(found, rows(run), strict=True):
        told = json.loads(told)
        assert {name: value for name, value in told.items() if isinstance(value, int | float)} == {
            name: value for name, value in row.items() if isinstance(value, int | float)
        }
        assert sum(told["heldout/rewards"]["values"]) == len(rewards(run, number, "heldout"))
        assert number == 0 or sum(told["sample/rewards"]["values"]) == len(rewards(run, number, "scored")) == 32
        assert [list(one) for one in told["heldout/samples"]["_value"]] == [["prompt", "before", "after", "reward"]] * 6


def test_resumed_and_killed_runs_are_told_once(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between commit and telling (lines.jsonl), and before what was told and noted is on disk (trackio writes it
    half a second later); then deprived of its notes."""
    run = work / "run"
    monkeypatch.setenv("TRACKIO_DIR", str(work / "trackio"))
    recipe = yaml.safe_load((work / "recipe.yaml").read_text())
    for kill in (1, 2, -1):
        mine = {"use": "my_tracker.py:Lines", "project": "lines", "options": {"kill": kill}}
        (work / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "track": ["tensorboard", "trackio", mine]}))
        running = process("run", work / "recipe.yaml", "--out", run)
        _, errors = running.communicate(timeout=120)
        assert running.returncode == (-signal.SIGKILL if kill > 0 else 0), errors
        notes = json.loads((run / "tracking.json").read_text())
        told = {name: one["told"] for name, one in notes.items()}
        last = kill if kill > 0 else 2
        assert told == {"tensorboard": last, "trackio": last, "my_tracker.py:Lines lines": last - (kill > 0)}
    check_trackio(work / "trackio", run)
    check_events(run)
    first, *written = [json.loads(line) for line in (run / "lines.jsonl").read_text().splitlines()]
    assert first["settings"]["sample.k"] == 4 and not any("track" in name for name in first["settings"])
    for one, row in zip(written, rows(run), strict=True):
        assert one.pop("step") == row["round"]
        assert one == {name: value for name, value in row.items() if isinstance(value, int | float)}
    for known in (0, -1):
        (run / "tracking.json").write_text(json.dumps({"tensorboard": {"run": "tensorboard", "told": known}}))
        with Tracking({"tensorboard": TensorBoard(run, {})}, run) as tracking:
            for number in (0, 1, 2):
                tracking.tell(number)
        check_events(run)


def test_a_tracker_that_fails_ends_nothing(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Said once; the other one goes on; the next session tells what is missing."""
    run = work / "run"
    for fail, steps in ((1, [0]), (-1, [0, 1, 2])):
        parsed = parse({**yaml.safe_load((work / "recipe.yaml").read_text()), "track": [
            {"use": "my_tracker.py:Lines", "project": "frail", "options": {"fail": fail}},
            {"use": "my_tracker.py:Lines", "project": "sound"},
        ]})  # fmt: skip
        with caplog.at_level(logging.WARNING, "raftune"), Tracking(trackers(parsed.track, run, work), run) as tracking:
            for number in (0, 1, 2):
                tracking.tell(number)
        written = {name: (run / f"{name}.jsonl").read_text().splitlines()[1:] for name in ("frail", "sound")}
        assert [json.loads(line)["step"] for line in written["frail"]] == steps
        assert [json.loads(line)["step"] for line in written["sound"]] == [0, 1, 2]
    assert len(caplog.records) == 1
    assert "frail: ConnectionError: no route to host; the run goes on" in caplog.text


class Unreachable:
    """Also when it is opened or closed, and it may ask for what is not there."""

    def __init__(self, start: Exception | None = None, finish: Exception | None = None) -> None:
        self.at_start, self.at_finish, self.told = start, finish, []

    def start(self, known: str | None, told: int, settings: Mapping[str, Any]) -> tuple[str, int]:
        if self.at_start:
            raise self.at_start
        return "run", told

    def log(self, entry: Entry) -> None:
        self.told.append(entry.number)

    def finish(self) -> None:
        if self.at_finish:
            raise self.at_finish


def test_a_tracker_out_of_reach_and_one_that_is_not_there(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = work / "run"
    away, closing = Unreachable(OSError("not logged in")), Unreachable(finish=OSError("timed out"))
    with caplog.at_level(logging.WARNING, "raftune"), Tracking({"away": away, "closing": closing}, run) as tracking:
        tracking.tell(0)
        tracking.tell(0)
    assert (away.told, closing.told) == ([], [0])
    assert [word in caplog.text for word in ("away: OSError: not logged in", "closing: OSError: timed out")] == [
        True,
        True,
    ]
    for fault in (ModuleNotFoundError("No module named 'x'"), TypeError("unexpected keyword argument 'y'")):
        with pytest.raises(UserError, match=f"track: it: {fault}"), Tracking({"it": Unreachable(fault)}, run):
            raise AssertionError("began")


def test_faults_are_told_before_any_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(track: str) -> str:
        done = call("run", work / "recipe.yaml", "--out", work / "new", "--set", f"track={track}")
        assert done.exit_code == 2 and not (work / "new").exists()
        return done.output

    assert "track: 'tensorbord' is unknown; use tensorboard, trackio, wandb, mlflow or module:Class" in fault(
        "tensorbord"
    )
    assert "track: my_rewards.py:vowels is no subclass of" in fault("my_rewards.py:vowels")
    assert "tensorboard has no project" in fault("{use: tensorboard, project: x}")
    assert "names one tracker twice" in fault("[tensorboard, tensorboard]")
    assert "no such key; did you mean 'project'?" in fault("{use: trackio, projekt: x}")
    monkeypatch.setitem(sys.modules, "mlflow", None)  # type: ignore[arg-type]
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["mlflow"])
    assert "track: mlflow is installed and cannot be imported: import of mlflow halted" in fault("mlflow")
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    assert "track: trackio is not installed: pip install 'raftune[trackers]'" in fault("trackio")
    dry = call("run", work / "recipe.yaml", "--dry-run", "--set", "track=mlflow")
    assert dry.exit_code == 2 and "track: mlflow is not installed: pip install mlflow" in dry.output


def test_it_says_how_and_not_what(work: Path) -> None:
    """The tracker may change when a run is resumed."""
    plain, named = (
        load(work / "recipe.yaml", change) for change in ((), ("track=[wandb, {use: mlflow, project: p}]",))
    )
    assert plain.settings == named.settings
    assert [one.key for one in named.track] == ["wandb", "mlflow p"]
    assert isinstance(named, TextRecipe) and load(work / "recipe.yaml", ("track=wandb",)).track == named.track[:1]


def test_runs_are_called_after_their_folder(tmp_path: Path) -> None:
    assert run_name(tmp_path / "mine") == "mine"
    assert run_name(tmp_path / "grid" / "cells" / "k=4" / "seed-1") == "grid k=4 seed-1"


def test_entry_is_what_lies_on_disk(work: Path) -> None:
    told = entry(work / "run", 2, 3)
    assert len(told.samples) == 3 and not told.pictures
    held = {
        one.candidate.prompt.content: one
        for one in table.read_scored(work / "run/rounds/0002/heldout.parquet", table.TextCodec())
    }
    first = {
        one.candidate.prompt.content: one
        for one in table.read_scored(work / "run/rounds/0000/heldout.parquet", table.TextCodec())
    }
    for one in told.samples:
        assert (one.after, one.reward) == (str(held[one.prompt].candidate.output), held[one.prompt].reward)
        assert one.before == str(first[one.prompt].candidate.output)
    assert entry(work / "run", 2, 0).samples == []


def of_pictures(number: int = 1) -> Entry:
    draw = np.random.default_rng(number)
    pictures = [Image.fromarray(draw.integers(0, 256, (4, 6, 3), np.uint8)) for _ in range(2)]
    return Entry(number, {"round": number}, {}, [Sample("a five", *pictures, 0.5)], ["a | <b>leap</b> of KL"])


def test_pictures_and_alarms_in_tensorboard(tmp_path: Path) -> None:
    tracker, told = TensorBoard(tmp_path, {}), of_pictures()
    tracker.start(None, -1, {"a.b": 1})
    tracker.log(told)
    tracker.finish()
    read = events(tmp_path)
    (image,) = read.Images("heldout/samples/0")
    assert np.array_equal(Image.open(io.BytesIO(image.encoded_image_string)), told.samples[0].after)
    (alarm,) = read.Tensors("alarms/text_summary")
    assert alarm.tensor_proto.string_val[0].decode() == "a | &lt;b&gt;leap&lt;/b&gt; of KL"


def test_what_a_model_wrote_is_text() -> None:
    assert (
        markdown([Sample("p", "a\nb|c", "<script>", None)]).splitlines()[2]
        == "| p | a<br>b&#124;c | &lt;script&gt; |  |"
    )


def test_the_trainer_reports(tiny: Path, tmp_path: Path) -> None:
    """``report_to`` as in transformers: none by default, "all" what is installed, or names."""
    for name, report_to in (("none", "none"), ("one", ["tensorboard"])):
        RAFTTrainer(str(tiny), long, config(tmp_path / name, report_to=report_to), asked()).train()
        assert (tmp_path / name / "tensorboard").exists() == (report_to != "none")
    check_events(tmp_path / "one")
    everything = config(tmp_path, report_to="all", run_name="mine", trackio_space_id="me/there")
    assert everything.unused() == []
    track = {one["use"]: one for one in everything.recipe(8)["track"]}
    assert {"tensorboard", "trackio"} <= set(track) <= {"tensorboard", "trackio", "wandb", "mlflow"}
    assert track["trackio"] == {"use": "trackio", "project": None, "name": "mine", "options": {"space_id": "me/there"}}
    with pytest.raises(UserError, match="'tensorbord' is unknown"):
        _ = RAFTTrainer(str(tiny), long, config(tmp_path / "x", report_to="tensorbord"), asked()).experiment


ONCE = """
from accelerate import Accelerator
from raftune.track.process import prepare
prepare()
print(Accelerator(mixed_precision="bf16", cpu=True).mixed_precision)
"""


def test_trackers_leave_the_precision_open() -> None:
    done = subprocess.run([sys.executable, "-c", ONCE], capture_output=True, text=True)
    assert done.stdout == "bf16\n", done.stderr


def tell_all(tracking: Tracking) -> None:
    with tracking:
        for number in (0, 1, 2):
            tracking.tell(number)


@pytest.mark.filterwarnings("ignore")  # the user's own package, of any version
def test_mlflow_holds_the_run_once(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(work)
    mlflow.set_tracking_uri(f"sqlite:///{work}/mlflow.db")
    run, recipe = work / "run", load(work / "recipe.yaml", ("track=mlflow",))
    for _ in range(2):  # the second time without its notes, but for the run's id
        tell_all(Tracking(trackers(recipe.track, run), run, recipe.settings, {"mlflow": 4}))
        notes = json.loads((run / "tracking.json").read_text())
        assert notes["mlflow"]["told"] == 2
        (run / "tracking.json").write_text(json.dumps({"mlflow": notes["mlflow"] | {"told": -1}}))
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("raftune").experiment_id])
    assert (found.info.run_id, found.info.run_name) == (notes["mlflow"]["run"], "run")
    assert found.data.params["sample.k"] == "4"
    assert set(found.data.metrics) == set(numbers(run))
    for name, by_round in numbers(run).items():
        history = client.get_metric_history(found.info.run_id, name)
        assert {one.step: one.value for one in history} == by_round and len(history) == len(by_round)
    samples = client.load_table(found.info.experiment_id, "heldout/samples-0002.json", [found.info.run_id])
    assert list(samples.columns) == ["prompt", "before", "after", "reward"] and len(samples) == 4


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_is_one_run(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, recipe = work / "run", load(work / "recipe.yaml", ("track=wandb",))
    ids = set()
    for _ in range(2):
        tell_all(Tracking(trackers(recipe.track, run), run, recipe.settings, {"wandb": 4}))
        notes = json.loads((run / "tracking.json").read_text())["wandb"]
        ids.add(notes["run"])
        assert notes["told"] == 2
    (name,) = ids
    sessions = sorted(run.glob("wandb/offline-run-*"))
    assert len(sessions) == 2 and all(list(one.glob(f"run-{name}.wandb")) for one in sessions)
    first, second = (next(one.glob("*.wandb")).stat().st_size for one in sessions)
    assert second < first  # nothing was told in it
    assert list(sessions[0].glob("files/media/table/heldout/samples_2_*.table.json"))
