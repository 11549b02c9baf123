"""The learner against the library's loss, a textbook AdamW, and an undisturbed run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EOS, build_tokenizer
from transformers import AutoModelForCausalLM

from raftune import interrupt
from raftune.batches import collate, output_logprobs, within_budget
from raftune.errors import Interrupted, UserError
from raftune.files import FIGURES, read_json
from raftune.models import load_model, load_tokenizer
from raftune.resident import CAUSAL, resident
from raftune.sample.text import TextSampler
from raftune.tokens import encode_prompt, output_ids
from raftune.tune.lora import Lora
from raftune.tune.session import Session
from raftune.tune.text import TextLearner
from raftune.types import Candidate, Prompt, Scored, Text

OUTPUTS = ["good", "a much longer answer", "b", "four words in here", "zz", "the end of it all"]


def chosen_of(outputs: list[str], finished: bool = True) -> list[Scored]:
    tokenizer = build_tokenizer()
    result = []
    for place, output in enumerate(outputs):
        ids = (*tokenizer(output)["input_ids"], *([EOS] if finished else []))
        text = Text(output, ids, None, "stop" if finished else "length")
        result.append(Scored(Candidate(Prompt(f"p{place}", "prompt " * (place % 3 + 1)), 0, text), 1.0))
    return result


def pairs_of(chosen: list[Scored]) -> list[tuple[list[int], list[int]]]:
    tokenizer = build_tokenizer()
    return [(encode_prompt(tokenizer, s.candidate.prompt), output_ids(tokenizer, s.candidate.output)) for s in chosen]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def equal(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "qwen3"])
def test_output_logprobs_are_minus_the_librarys_loss(family: str, model_of: Callable[..., Path]) -> None:
    """Padded batches of unequal prompts and outputs against the library's loss on one row, prompt masked."""
    model = AutoModelForCausalLM.from_pretrained(model_of(family)).eval()
    pairs = pairs_of(chosen_of(OUTPUTS))
    with torch.inference_mode():
        ours = output_logprobs(model, collate(pairs, model.device)).sum(-1)
        for (prompt, output), total in zip(pairs, ours, strict=True):
            labels = torch.tensor([[-100] * len(prompt) + output])
            loss = model(torch.tensor([prompt + output]), labels=labels).loss
            assert total.item() == pytest.approx(-loss.item() * len(output), abs=1e-3)


def textbook(folder: Path, pairs: list[tuple[list[int], list[int]]], steps: list[list[int]], rate: float) -> Any:
    """AdamW by the library, one row at a time, gradients of the token mean, clipped at 1, linear decay."""
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    for number, rows in enumerate(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - number / len(steps))
        tokens = sum(len(pairs[row][1]) for row in rows)
        for row in rows:
            prompt, output = pairs[row]
            labels = torch.tensor([[-100] * len(prompt) + output])
            loss = model(torch.tensor([prompt + output]), labels=labels).loss * len(output) / tokens
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_tuning_is_the_textbooks(tiny: Path, tmp_path: Path, batch_tokens: int) -> None:
    """However a step is cut for memory, the weights come out as from single rows."""
    chosen = chosen_of(OUTPUTS)
    learner = TextLearner(learning_rate=1e-3, epochs=2, batch_size=4, batch_tokens=batch_tokens)
    out = learner.tune(tiny, chosen, tmp_path / "policy", (0, 1))
    pairs = pairs_of(chosen)
    steps = [[pairs.index(pair) for pair in step] for step in learner.steps(pairs, (0, 1))]
    assert sorted(row for step in steps for row in step) == sorted([*range(6), *range(6)])
    wanted, found = textbook(tiny, pairs, steps, 1e-3), weights(out)
    before = weights(tiny)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=2e-5, rtol=0)
    assert max((found[name] - before[name]).abs().max() for name in found) > 1e-3


def test_the_loss_falls_and_figures_are_written(tiny: Path, tmp_path: Path) -> None:
    chosen = chosen_of(OUTPUTS)
    once = TextLearner(learning_rate=1e-2, batch_size=6).tune(tiny, chosen, tmp_path / "a", (0,))
    often = TextLearner(learning_rate=1e-2, batch_size=6, epochs=20).tune(tiny, chosen, tmp_path / "b", (0,))
    first, last = read_json(once / FIGURES), read_json(often / FIGURES)
    assert last["loss"] < first["loss"] / 2
    assert (first["steps"], last["steps"]) == (1, 20)
    assert first["tokens"] == sum(len(p) + len(o) for p, o in pairs_of(chosen))
    assert first["tokens_per_s"] > 0


def test_end_of_sequence_is_learned_where_the_candidate_finished(tiny: Path, tmp_path: Path) -> None:
    """The drawn ids are what is learned from: nothing is tokenized again."""
    assert pairs_of(chosen_of(["ab"]))[0][1][-1] == EOS
    assert EOS not in pairs_of(chosen_of(["ab"], finished=False))[0][1]
    odd = Text("ab", (1, 2, 3), None, "stop")  # ids that no tokenizer makes of "ab"
    assert output_ids(build_tokenizer(), odd) == [1, 2, 3]
    by_people = Text("ab")
    assert output_ids(build_tokenizer(), by_people) == [*build_tokenizer()("ab")["input_ids"], EOS]


class Stopped(Exception):
    pass


@contextmanager
def dies_after(steps: int) -> Iterator[None]:
    """A tuning in this block dies after so many steps."""
    apply, done = Session._apply, []

    def dies(self: Session, loss: float) -> None:
        if len(done) == steps:
            raise Stopped
        done.append(1)
        apply(self, loss)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Session, "_apply", dies)
        yield


@pytest.mark.parametrize("lora", [None, Lora(r=4, dropout=0.1)], ids=["full", "lora"])
@pytest.mark.parametrize("stop_at", [1, 4, 5])
def test_a_resumed_tuning_ends_with_the_same_weights(
    tiny: Path, tmp_path: Path, lora: Lora | None, stop_at: int
) -> None:
    chosen = chosen_of(OUTPUTS)
    learner = TextLearner(learning_rate=1e-3, epochs=3, batch_size=2, save_steps=2, lora=lora)
    undisturbed = learner.tune(tiny, chosen, tmp_path / "a" / "policy", (0, 1))

    with dies_after(stop_at):
        learner.tune(tiny, chosen, tmp_path / "b" / "policy", (0, 1))
    assert not (tmp_path / "b" / "policy").exists()
    assert (tmp_path / "b" / "policy.tuning").exists() == (stop_at > 1)
    resumed = learner.tune(tiny, chosen, tmp_path / "b" / "policy", (0, 1))
    assert not (tmp_path / "b" / "policy.tuning").exists()
    if lora is None:
        assert equal(undisturbed, resumed)
    else:
        from safetensors.torch import load_file

        one, other = (load_file(folder / "adapter_model.safetensors") for folder in (undisturbed, resumed))
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert ("tokens_per_s" in read_json(resumed / FIGURES)) == (stop_at == 1)


def test_a_signal_saves_the_step_and_stops(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = chosen_of(OUTPUTS)
    learner = TextLearner(learning_rate=1e-3, epochs=3, batch_size=2)
    undisturbed = learner.tune(tiny, chosen, tmp_path / "a" / "policy", (0, 1))
    monkeypatch.setattr(interrupt, "_received", [15])
    with pytest.raises(Interrupted, match="SIGTERM"):
        learner.tune(tiny, chosen, tmp_path / "b" / "policy", (0, 1))
    monkeypatch.setattr(interrupt, "_received", [])
    assert read_json(tmp_path / "b" / "policy.tuning" / "step.json")["step"] == 1
    assert equal(undisturbed, learner.tune(tiny, chosen, tmp_path / "b" / "policy", (0, 1)))


def test_the_state_of_another_tuning_is_not_used(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = chosen_of(OUTPUTS)
    slow, fast = (TextLearner(learning_rate=rate, epochs=2, batch_size=2, save_steps=1) for rate in (1e-4, 1e-3))
    session = slow.fit(tiny, pairs_of(chosen), tmp_path / "b" / "policy", (0, 1))
    session.step = 3
    session.store()
    undisturbed = fast.tune(tiny, chosen, tmp_path / "a" / "policy", (0, 1))
    assert equal(undisturbed, fast.tune(tiny, chosen, tmp_path / "b" / "policy", (0, 1)))


def test_the_optimiser_starts_anew_or_is_carried(tiny: Path, tmp_path: Path) -> None:
    """Carried: two tunings of one step each equal one optimiser's two steps at a constant rate."""
    chosen = chosen_of(OUTPUTS)

    def twice(name: str, **options: Any) -> Path:
        learner = TextLearner(learning_rate=1e-3, batch_size=6, schedule="constant", **options)
        first = learner.tune(tiny, chosen, tmp_path / name / "1" / "policy", (0, 1))
        return learner.tune(first, chosen, tmp_path / name / "2" / "policy", (0, 1))

    at_once = TextLearner(learning_rate=1e-3, batch_size=6, schedule="constant", epochs=2)
    whole = weights(at_once.tune(tiny, chosen, tmp_path / "whole" / "policy", (0, 1)))
    carried, reset = weights(twice("carry", optimizer="carry")), weights(twice("reset"))
    for name in whole:
        torch.testing.assert_close(carried[name], whole[name], atol=1e-6, rtol=0)
    assert max((reset[name] - whole[name]).abs().max() for name in whole) > 1e-4


def test_lora_trains_the_adapter_alone_and_goes_on_from_it(tiny: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    chosen = chosen_of(OUTPUTS)
    learner = TextLearner(learning_rate=1e-2, epochs=4, lora=Lora(r=4))
    first = learner.tune(tiny, chosen, tmp_path / "1" / "policy", (0, 1))
    second = learner.tune(first, chosen, tmp_path / "2" / "policy", (0, 2))
    for folder in (first, second):
        opened = AutoPeftModelForCausalLM.from_pretrained(folder)
        assert opened.peft_config["default"].base_model_name_or_path == str(tiny)
        assert sum("lora" in name for name in opened.state_dict()) == 2 * 7 * 2
    losses = [read_json(folder / FIGURES)["loss"] for folder in (first, second)]
    assert losses[1] < losses[0]
    prompt = [Prompt("p", "prompt ")]
    texts = [TextSampler(max_new_tokens=8, top_k=1).sample(p, prompt, 1, (0,))[0].output.text for p in (tiny, second)]
    assert texts[0] != texts[1]


@pytest.mark.parametrize("lora", [None, Lora(r=4)], ids=["full", "lora"])
def test_gradient_checkpointing_changes_nothing_but_memory(tiny: Path, tmp_path: Path, lora: Lora | None) -> None:
    chosen = chosen_of(OUTPUTS)
    plain = TextLearner(learning_rate=1e-3, lora=lora).tune(tiny, chosen, tmp_path / "a", (0,))
    saving = TextLearner(learning_rate=1e-3, lora=lora, gradient_checkpointing=True)
    saving.tune(tiny, chosen, tmp_path / "b", (0,))
    one, other = (load_model(folder, torch.float32).state_dict() for folder in (plain, tmp_path / "b"))
    assert max((one[name] - weights(tiny)[name]).abs().max() for name in one) > 1e-6
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=0)


def test_bfloat16_autocast_keeps_float32_weights(tiny: Path, tmp_path: Path) -> None:
    """In a process of its own: accelerate fixes the precision once per process."""
    import os
    import subprocess
    import sys

    code = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from test_tune import *;"
        f"out = TextLearner(learning_rate=1e-3, epochs=8).tune(Path({str(tiny)!r}), chosen_of(OUTPUTS),"
        f" Path({str(tmp_path / 'policy')!r}), (0,)); state = weights(out);"
        "assert {str(t.dtype) for t in state.values()} == {'torch.float32'};"
        "assert not equal(out, Path(sys.argv[1])); print(read_json(out / FIGURES)['loss'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tiny)],
        capture_output=True,
        text=True,
        env={**os.environ, "RAFTUNE_DTYPE": "bfloat16"},
        cwd=Path(__file__).parent.parent,
    )
    assert result.returncode == 0, result.stderr
    exact = TextLearner(learning_rate=1e-3, epochs=8).tune(tiny, chosen_of(OUTPUTS), tmp_path / "exact", (0,))
    assert float(result.stdout) == pytest.approx(read_json(exact / FIGURES)["loss"], rel=0.05)


def test_nothing_to_learn_from(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to learn"):
        TextLearner().tune(tiny, [], tmp_path / "policy", (0,))
    empty = [Scored(Candidate(Prompt("p", "x"), 0, Text("", (), (), "length")), 1.0)]
    with pytest.raises(UserError, match="empty"):
        TextLearner().tune(tiny, empty, tmp_path / "policy", (0,))


def test_groups_keep_the_budget() -> None:
    groups = within_budget([5, 1, 9, 3, 3, 20], lambda n: (n,), 10)
    assert groups == [[1, 3, 3], [5], [9], [20]]
    assert all(len(group) * max(group) <= 10 or len(group) == 1 for group in groups)
    assert math.prod(map(len, groups)) == 3
    # Prompts and outputs are padded apart: a long prompt and a long output in one group would cost 2 × 200
    assert within_budget([(1, 100), (100, 1)], lambda pair: pair, 202) == [[(1, 100)], [(100, 1)]]


def test_the_state_of_the_same_tuning_of_other_answers_is_not_used(tiny: Path, tmp_path: Path) -> None:
    learner = TextLearner(learning_rate=1e-3, epochs=2, batch_size=2)
    first, second = chosen_of(OUTPUTS), chosen_of(OUTPUTS[::-1])
    session = learner.fit(tiny, pairs_of(first), tmp_path / "b" / "policy", (0, 1))
    session.step = 1
    session.store()
    undisturbed = learner.tune(tiny, second, tmp_path / "a" / "policy", (0, 1))
    assert equal(undisturbed, learner.tune(tiny, second, tmp_path / "b" / "policy", (0, 1)))


def test_a_diverging_tuning_is_one_line(tiny: Path, tmp_path: Path) -> None:
    learner = TextLearner(learning_rate=1e30, batch_size=1, max_grad_norm=1e30)
    with pytest.raises(UserError, match=r"the loss is nan at step \d; lower tune.learning_rate"):
        learner.tune(tiny, chosen_of(OUTPUTS), tmp_path / "policy", (0,))
    assert not (tmp_path / "policy").exists()


def test_another_rank_than_the_adapters_is_refused(tiny: Path, tmp_path: Path) -> None:
    first = TextLearner(lora=Lora(r=4)).tune(tiny, chosen_of(OUTPUTS), tmp_path / "1", (0,))
    with pytest.raises(UserError, match="is an adapter with r=4, alpha=32"):
        TextLearner(lora=Lora(r=8)).tune(first, chosen_of(OUTPUTS), tmp_path / "2", (0,))
    with pytest.raises(UserError, match=r"tune\.lora: .*nope"):
        TextLearner(lora=Lora(target_modules=("nope",))).tune(tiny, chosen_of(OUTPUTS), tmp_path / "3", (0,))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mamba"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_was_tuned_serves_without_the_disk(
    model_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, precision: str
) -> None:
    """The live model is what loading its checkpoint makes, to the bit: weights, buffers, settings, words, answers."""
    learner = TextLearner(learning_rate=1e-3)
    if precision == "bfloat16":  # accelerate fixes autocast once a process: tuned in float32, served in bfloat16
        fit = TextLearner._fit

        def then(self: TextLearner, *args: Any) -> Session:
            session = fit(self, *args)
            monkeypatch.setenv("RAFTUNE_DTYPE", precision)
            return session

        monkeypatch.setattr(TextLearner, "_fit", then)
    out = learner.tune(model_of(family), chosen_of(OUTPUTS), tmp_path / "policy", (0,))
    base = resident.get(out, CAUSAL, lambda: pytest.fail("was not handed over"))
    loaded = load_model(out, getattr(torch, precision))
    live, tokenizer = base.alone()
    for mine, expected in (
        (live.named_parameters(), loaded.named_parameters()),
        (live.named_buffers(), loaded.named_buffers()),
    ):
        for (name, a), (other, b) in zip(mine, expected, strict=True):
            assert name == other and a.dtype == b.dtype and torch.equal(a, b), name
    assert live.training == loaded.training and live.generation_config.to_dict() == loaded.generation_config.to_dict()
    assert live.config.to_diff_dict() == loaded.config.to_diff_dict()
    prompts = [Prompt("p", "prompt "), Prompt("q", "a longer prompt")]
    found = TextSampler(max_new_tokens=8).sample(out, prompts, 3, (0,))
    resident.free()
    assert TextSampler(max_new_tokens=8).sample(out, prompts, 3, (0,)) == found
    assert tokenizer("prompt ")["input_ids"] == load_tokenizer(out)("prompt ")["input_ids"]
