"""AdamW with moments of 8 bits against the one with 32, and its way through states and rounds."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_tune import OUTPUTS, chosen_of, dies_after, equal, pairs_of, weights

from raftune.config import TextTuneConfig
from raftune.errors import UserError
from raftune.files import FIGURES, read_json
from raftune.recipe import validated
from raftune.tune import optimizer
from raftune.tune.lora import Lora
from raftune.tune.session import Options, Session
from raftune.tune.text import TextLearner

SETTINGS: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 2}


@pytest.fixture
def eight() -> None:
    pytest.importorskip("bitsandbytes")


def wide(model_of: Any) -> Path:
    """Large enough that its matrices are quantised."""
    return model_of("llama", hidden_size=64, intermediate_size=96)


def test_the_moments_take_a_quarter(eight: None) -> None:
    parameter = torch.nn.Parameter(torch.randn(256, 256))
    sizes = {}
    for bits in (32, 8):
        one = optimizer.adamw([parameter], 1e-3, 0.0, bits)
        parameter.grad = torch.randn(256, 256)
        one.step()
        held = [t for t in one.state[parameter].values() if isinstance(t, torch.Tensor) and t.numel() > 256]
        sizes[bits] = sum(t.numel() * t.element_size() for t in held)
    assert sizes == {32: 8 * 256 * 256, 8: 2 * 256 * 256}


def test_it_learns_as_32_bits_do(eight: None, model_of: Any, tmp_path: Path) -> None:
    tiny, chosen = wide(model_of), chosen_of(OUTPUTS)
    losses, moved = {}, {}
    for bits in (32, 8):
        learner = TextLearner(**SETTINGS, epochs=8, optimizer_bits=bits)
        out = learner.tune(tiny, chosen, tmp_path / str(bits), (0,))
        losses[bits] = read_json(out / FIGURES)["loss"]
        after, before = weights(out), weights(tiny)
        moved[bits] = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert losses[8] == pytest.approx(losses[32], rel=0.05)
    assert torch.nn.functional.cosine_similarity(moved[8], moved[32], dim=0) > 0.95
    assert not torch.equal(moved[8], moved[32])


@pytest.mark.parametrize("lora", [None, Lora(r=64, dropout=0.1)], ids=["full", "lora"])
def test_a_resumed_tuning_ends_with_the_same_weights(
    eight: None, model_of: Any, tmp_path: Path, lora: Lora | None
) -> None:
    tiny, chosen = wide(model_of), chosen_of(OUTPUTS)
    learner = TextLearner(**SETTINGS, epochs=3, save_steps=2, lora=lora, optimizer_bits=8)
    undisturbed = learner.tune(tiny, chosen, tmp_path / "a" / "policy", (0, 1))
    with dies_after(5):
        learner.tune(tiny, chosen, tmp_path / "b" / "policy", (0, 1))
    resumed = learner.tune(tiny, chosen, tmp_path / "b" / "policy", (0, 1))
    if lora is None:
        assert equal(undisturbed, resumed)
    else:
        from safetensors.torch import load_file

        one, other = (load_file(folder / "adapter_model.safetensors") for folder in (undisturbed, resumed))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_moments_are_carried(eight: None, model_of: Any, tmp_path: Path) -> None:
    """Two tunings of one step equal one of two steps, at a constant rate."""
    tiny, chosen = wide(model_of), chosen_of(OUTPUTS)
    options: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 6, "schedule": "constant", "optimizer_bits": 8}
    whole = TextLearner(**options, epochs=2).tune(tiny, chosen, tmp_path / "whole" / "policy", (0, 1))
    learner = TextLearner(**options, optimizer="carry")
    first = learner.tune(tiny, chosen, tmp_path / "1" / "policy", (0, 1))
    second = learner.tune(first, chosen, tmp_path / "2" / "policy", (0, 1))
    a, b = weights(whole), weights(second)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=0)


def test_moments_of_another_optimiser_are_refused(eight: None, tiny: Path, tmp_path: Path) -> None:
    chosen = chosen_of(OUTPUTS)
    first = TextLearner(**SETTINGS, optimizer="carry").tune(tiny, chosen, tmp_path / "1" / "policy", (0,))
    other = TextLearner(**SETTINGS, optimizer="carry", optimizer_bits=8)
    with pytest.raises(UserError, match=r"tune\.optimizer: .*optimizer.pt holds moments of another optimiser"):
        other.tune(first, chosen, tmp_path / "2" / "policy", (0,))


def test_what_cannot_run_is_one_line(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = TextLearner(optimizer_bits=8)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"optimizer_bits: 8 needs .*pip install 'raftune\[adamw-8bit\]'"):
        learner.fit(tiny, pairs_of(chosen_of(OUTPUTS)), tmp_path / "policy", (0,))
    monkeypatch.setattr(optimizer, "device", lambda: torch.device("mps"))
    with pytest.raises(UserError, match="8 bits do not run on mps; use 32"):
        optimizer.adamw([], 1e-3, 0.0, 8)


def test_a_recipe_says_how_many_bits() -> None:
    assert TextTuneConfig().optimizer_bits == 32
    assert validated(TextTuneConfig, {"optimizer_bits": 8}, "tune").optimizer_bits == 8
    with pytest.raises(UserError, match=r"tune\.optimizer_bits"):
        validated(TextTuneConfig, {"optimizer_bits": 4}, "tune")


def test_cosine_falls_as_its_formula(tmp_path: Path) -> None:
    """Half a wave from the learning rate to 0, over the steps of a tuning."""
    options = Options(learning_rate=0.1, schedule="cosine")
    session = Session(options, torch.nn.Linear(2, 2), "policy", tmp_path / "out", 4, "one", False)
    rates = []

    def update(number: int) -> float:
        rates.append(session.optimizer.param_groups[0]["lr"])
        return session.backward(session.prepared(torch.ones(1, 2)).sum())

    session.run(update)
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * number / 4)) for number in range(4)])
