"""The model that ships: its size, what it can and what it cannot draw, and the script that trains it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raftune import pick
from raftune.config import RewardConfig
from raftune.recipe import load
from raftune.sample.image import ImageSampler
from raftune.types import Prompt

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "digits"
RECIPES = ROOT / "recipes"


def right(label: str, scorer: str, count: int = 48, **sampling: int) -> float:
    """The share of pictures of this label that a classifier reads as asked."""
    prompts = [Prompt(label, f"a {label}", {"label": label})]
    sampler = ImageSampler(steps=8, guidance=2.5, **sampling)
    drawn = sampler.sample(DIGITS / "model", prompts, count, (0,))
    assert {(c.output.height, c.output.width) for c in drawn} == {(sampling.get("height", 32),) * 2}
    reward = pick.reward(RewardConfig(use=f"correct:{DIGITS / scorer}"))
    return sum(value or 0.0 for value in reward(drawn)) / count


def test_the_weights_are_small_enough_to_ship() -> None:
    size = {
        folder: sum(f.stat().st_size for f in (DIGITS / folder).rglob("*")) for folder in ("model", "reader", "judge")
    }
    assert size["model"] <= 10_000_000
    assert size["reader"] <= 1_500_000
    assert size["judge"] <= 1_500_000


@pytest.mark.parametrize("scorer", ["reader", "judge"])
def test_it_draws_what_it_saw_and_not_what_it_never_saw(scorer: str) -> None:
    """Both readers agree that there is something to mend, and that the rest is drawn."""
    assert right("green nine", scorer) > 0.7
    assert right("red five", scorer) > 0.7
    assert right("green five", scorer) < 0.4


def test_other_sizes_are_drawn_worse() -> None:
    assert right("green nine", "judge", height=40, width=40) < right("green nine", "judge")


def test_the_recipes_of_pictures_read(tmp_path: Path) -> None:
    for name in ("quickstart-image", "digits-all", "digits-40", "sd15-aesthetic", "sd15-monet"):
        recipe = load(RECIPES / f"{name}.yaml")
        assert recipe.modality == "image"
        assert (RECIPES / recipe.prompts.path).exists()


def test_the_script_trains_on_the_digits_that_scikit_learn_carries(tmp_path: Path) -> None:
    """A few steps of every stage: not good, but whole."""
    command = [sys.executable, DIGITS / "train.py", "--quick", "--out", tmp_path]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "training.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"vae", "unet", "reader", "judge"}
    drawn = ImageSampler(steps=2).sample(tmp_path / "model", [Prompt("p", "a red seven")], 2, (0,))
    assert drawn[0].output != drawn[1].output
