"""Adapters beside one base against peft's own model, and the base against one that is loaded afresh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_tokenizer, prompts_of
from safetensors.torch import load_file
from test_kl import experiment
from test_tune import OUTPUTS, chosen_of
from transformers import AutoModelForCausalLM

from raftune.adapters import Base, stands_beside
from raftune.likelihood import logprobs
from raftune.models import load_model
from raftune.resident import CAUSAL, causal, parted, resident
from raftune.reward.kl import KlReward
from raftune.sample.text import TextSampler
from raftune.tune.lora import Lora
from raftune.tune.text import TextLearner
from raftune.types import Candidate

PROMPTS = prompts_of("It was", "A film about", "Nobody knew that")
SAMPLER = TextSampler(max_new_tokens=7)
LEARNER = TextLearner(learning_rate=1e-2, epochs=2, batch_size=2, lora=Lora(r=4, dropout=0.1))


def adapter(base: Path, folder: Path, seed: int = 1, **options: Any) -> Path:
    """A random adapter that changes what its base says."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    usual = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "init_lora_weights": False}
    config = LoraConfig(**{**usual, "fan_in_fan_out": "gpt2" in base.name, **options})
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def theirs(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from peft import PeftConfig, PeftModel

    base = AutoModelForCausalLM.from_pretrained(PeftConfig.from_pretrained(folder).base_model_name_or_path, dtype=dtype)
    if dtype == torch.bfloat16:  # attention that rounds as ours does (models.attend)
        base.set_attn_implementation("eager")
    return PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False).eval()


def by_peft(folder: Path, drawn: list[Candidate], dtype: torch.dtype = torch.float32) -> list[float]:
    """Log-probabilities by peft's own model, a row at a time, no padding."""
    model = theirs(folder, dtype)
    found = []
    for one in drawn:
        before = build_tokenizer()(one.prompt.content)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*before, *one.output.token_ids]])).logits[0].float()
        rows = logits.log_softmax(-1)[len(before) - 1 : -1]
        found.append(rows.gather(-1, torch.tensor(one.output.token_ids)[:, None]).sum().item())
    return found


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folder of every whole model that is loaded."""
    found: list[str] = []
    load = AutoModelForCausalLM.from_pretrained

    def noted(folder: str, **options: Any) -> Any:
        found.append(str(folder))
        return load(folder, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noted)
    return found


def of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "gemma2"])  # gemma2 goes through model.generate
def test_an_adapter_speaks_as_pefts_own_model(model_of: Callable[..., Path], tmp_path: Path, family: str) -> None:
    policy = adapter(model_of(family), tmp_path / "adapter")
    greedy = TextSampler(max_new_tokens=12, top_k=1).sample(policy, PROMPTS, 1, (0,))
    for one in greedy:
        ids = build_tokenizer()(one.prompt.content, return_tensors="pt")
        out = theirs(policy).generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert list(one.output.token_ids) == out.tolist()
    drawn = SAMPLER.sample(policy, PROMPTS, 3, (0,))
    expected = by_peft(policy, drawn)
    assert [one.logprob for one in drawn] == pytest.approx(expected, abs=2e-3)
    assert [total for total, _ in logprobs(policy, drawn)] == pytest.approx(expected, abs=2e-3)
    assert [total for total, _ in logprobs(model_of(family), drawn)] != pytest.approx(expected, abs=1e-1)


def test_a_small_change_survives_bfloat16(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change below the weights' rounding: merged little of it is left, beside them it is as peft computes it."""
    from safetensors.torch import save_file

    monkeypatch.setenv("RAFTUNE_DTYPE", "bfloat16")
    policy = adapter(tiny, tmp_path / "adapter")
    file = policy / "adapter_model.safetensors"
    save_file({name: t * (0.002 if "lora_B" in name else 1) for name, t in of(policy).items()}, file)
    base, merged = load_model(tiny, torch.bfloat16), load_model(policy, torch.bfloat16)
    changed = [
        (a != b).float().mean().item()
        for (name, a), (_, b) in zip(base.named_parameters(), merged.named_parameters(), strict=True)
        if "_proj" in name
    ]
    assert max(changed) < 0.5
    drawn = SAMPLER.sample(tiny, PROMPTS, 4, (0,))
    beside = [logprobs(policy, [one])[0][0] for one in drawn]
    assert beside == pytest.approx(by_peft(policy, drawn, torch.bfloat16), abs=1e-4)
    assert beside != pytest.approx([logprobs(tiny, [one])[0][0] for one in drawn], abs=1e-3)


def by_plain(folder: Path, drawn: list[Candidate]) -> list[float]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = []
    for one in drawn:
        before = build_tokenizer()(one.prompt.content)["input_ids"]
        with torch.no_grad():
            rows = model(torch.tensor([[*before, *one.output.token_ids]])).logits[0].log_softmax(-1)
        found.append(rows[len(before) - 1 : -1].gather(-1, torch.tensor(one.output.token_ids)[:, None]).sum().item())
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_reference_is_the_base_to_the_bit(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, loads: list[str]
) -> None:
    monkeypatch.setenv("RAFTUNE_DTYPE", precision)
    one, other = adapter(tiny, tmp_path / "1"), adapter(tiny, tmp_path / "2", seed=2, r=4)
    loads.clear()
    drawn = SAMPLER.sample(one, PROMPTS, 3, (0,))
    first = logprobs(one, drawn)
    SAMPLER.sample(other, PROMPTS, 3, (0,))
    under_base = logprobs(tiny, drawn)
    assert logprobs(one, drawn) == first  # and the adapter is what it was
    assert len(loads) == 1
    resident.free()
    assert logprobs(tiny, drawn) == under_base
    assert len(loads) == 2


def test_a_tuning_leaves_the_base_as_it_was(tiny: Path, tmp_path: Path, loads: list[str]) -> None:
    """Grad flags, modes, hooks, checkpointing: a freshly loaded base is no different."""
    drawn = SAMPLER.sample(tiny, PROMPTS, 3, (0,))
    before = logprobs(tiny, drawn)
    learner = TextLearner(learning_rate=1e-2, lora=Lora(r=4, dropout=0.1), gradient_checkpointing=True)
    policy = learner.tune(tiny, chosen_of(OUTPUTS), tmp_path / "policy", (0, 1))
    assert logprobs(tiny, drawn) == before
    assert logprobs(policy, drawn) == logprobs(policy, drawn) != before
    model, _ = causal(tiny)
    assert len(loads) == 1
    assert not model.training and not model.is_activation_checkpointing
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    resident.take(tiny, CAUSAL, pytest.fail).bare()
    fresh = load_model(tiny, torch.float32)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in fresh.named_modules()]
    assert not model.get_input_embeddings()._forward_hooks  # peft and checkpointing put theirs there
    for (name, mine), (_, theirs) in zip(model.state_dict().items(), fresh.state_dict().items(), strict=True):
        assert torch.equal(mine, theirs), name
    assert SAMPLER.sample(tiny, PROMPTS, 3, (0,)) == drawn


def test_a_tuning_does_not_see_what_was_sampled_before(tiny: Path, tmp_path: Path) -> None:
    """On a base that served two adapters and on a fresh one: the same weights, dropout included."""
    chosen = chosen_of(OUTPUTS)
    first = LEARNER.tune(tiny, chosen, tmp_path / "1", (0, 1))
    resident.free()
    fresh = LEARNER.tune(first, chosen, tmp_path / "2", (0, 2))
    for policy in (first, fresh, tiny, first):
        logprobs(policy, SAMPLER.sample(policy, PROMPTS, 2, (0,)))
    again = LEARNER.tune(first, chosen, tmp_path / "3", (0, 2))
    assert all(torch.equal(tensor, of(again)[name]) for name, tensor in of(fresh).items())
    assert any(not torch.equal(tensor, of(first)[name]) for name, tensor in of(fresh).items())


def test_a_base_is_loaded_once_in_a_run(tiny: Path, tmp_path: Path, loads: list[str]) -> None:
    """Two rounds with the KL-shaped reward and evaluation; round 0 is evaluated too."""
    shaped = experiment(tiny, tmp_path, 0.3)
    recipe = shaped.parts.recipe.model_copy(
        update={"tune": shaped.parts.recipe.tune.model_validate({"learning_rate": 1e-2, "lora": {"r": 4}})}
    )
    with shaped.run:
        rows = list(type(shaped)(type(shaped.parts)(recipe, tmp_path), shaped.run).rounds())
    assert len(rows) == 3 and abs(rows[1]["sample/kl"]) < 1e-3 < abs(rows[2]["sample/kl"])
    assert loads == [str(tiny)]


def test_an_adapter_as_the_initial_policy_is_the_reference(tiny: Path, tmp_path: Path, loads: list[str]) -> None:
    initial = adapter(tiny, tmp_path / "initial", r=4, lora_alpha=32)
    loads.clear()
    policy = TextLearner(learning_rate=1e-2, lora=Lora(r=4)).tune(initial, chosen_of(OUTPUTS), tmp_path / "p", (0,))
    drawn = SAMPLER.sample(policy, PROMPTS, 3, (0,))
    found = KlReward(initial)(drawn)
    assert KlReward(policy)(drawn) == pytest.approx([0.0] * 9, abs=1e-4)
    assert loads == [str(tiny)]
    expected = [a - b for a, b in zip(by_peft(policy, drawn), by_peft(initial, drawn), strict=True)]
    assert found == pytest.approx(expected, abs=4e-3)


def test_a_new_adapter_says_what_its_base_says(tiny: Path, tmp_path: Path) -> None:
    """LoRA begins at zero: the divergence of round 0 is exactly none."""
    start = adapter(tiny, tmp_path / "start", init_lora_weights=True)
    drawn = SAMPLER.sample(tiny, PROMPTS, 3, (0,))
    assert logprobs(start, drawn) == logprobs(tiny, drawn)
    assert SAMPLER.sample(start, PROMPTS, 3, (0,)) == drawn


def test_another_adapter_in_the_same_folder_is_noticed(tiny: Path, tmp_path: Path) -> None:
    drawn = SAMPLER.sample(tiny, PROMPTS, 3, (0,))
    found = [logprobs(adapter(tiny, tmp_path / "a", seed=seed, r=seed + 1), drawn) for seed in (1, 2, 3, 1)]
    assert found[0] == found[3]
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize(
    "options",
    [{"modules_to_save": ["o_proj"]}, {"bias": "lora_only"}, {"use_dora": True}, {"init_lora_weights": "pissa"}],
    ids=str,
)
def test_what_may_change_its_base_has_one_of_its_own(tiny: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    policy = adapter(tiny, tmp_path / "adapter", **({"target_modules": ["q_proj", "v_proj"]} | options))
    assert not stands_beside(str(policy)) and parted(policy) == (str(policy), None)
    drawn = SAMPLER.sample(policy, PROMPTS, 3, (0,))
    assert [one.logprob for one in drawn] == pytest.approx(by_peft(policy, drawn), abs=2e-3)
    assert [total for total, _ in logprobs(tiny, drawn)] == pytest.approx(by_plain(tiny, drawn), abs=2e-3)


def test_other_kinds_of_adapters_are_merged(tiny: Path, tmp_path: Path) -> None:
    from peft import IA3Config, get_peft_model

    torch.manual_seed(0)
    config = IA3Config(task_type="CAUSAL_LM", init_ia3_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config).save_pretrained(tmp_path / "a")
    drawn = SAMPLER.sample(tmp_path / "a", PROMPTS, 3, (0,))
    assert [one.logprob for one in drawn] == pytest.approx(by_peft(tmp_path / "a", drawn), abs=2e-3)


def test_what_inference_made_does_not_reach_a_tuning(tiny: Path, tmp_path: Path, loads: list[str]) -> None:
    chosen = chosen_of(OUTPUTS)
    undisturbed = LEARNER.tune(tiny, chosen, tmp_path / "1", (0,))
    with torch.inference_mode():
        causal(tiny)[0].model.norm.weight.data = torch.full((32,), 7.0)
    again = LEARNER.tune(tiny, chosen, tmp_path / "2", (0,))
    assert len(loads) == 2
    assert all(torch.equal(tensor, of(again)[name]) for name, tensor in of(undisturbed).items())


def test_the_state_of_a_tuning_holds_the_adapter_alone(tiny: Path, tmp_path: Path) -> None:
    from test_tune import pairs_of

    session = LEARNER.fit(tiny, pairs_of(chosen_of(OUTPUTS)), tmp_path / "policy", (0,))
    session.store()
    names = load_file(tmp_path / "policy.tuning" / "model.safetensors")
    assert names and all(".lora_" in name for name in names)


def test_the_slot_holds_a_base(tiny: Path) -> None:
    causal(tiny)
    assert isinstance(resident.get(tiny, CAUSAL, pytest.fail), Base)
