"""The sampler against the library: greedy tokens against ``generate``, log-probabilities against a forward pass."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EOS, SHARING, build_tokenizer, prompts_of
from transformers import AutoModelForCausalLM

from raftune.errors import UserError
from raftune.models import load_model
from raftune.resident import resident
from raftune.sample import probe
from raftune.sample.decode import NEVER, Stop, Work, decode_generate, decode_shared
from raftune.sample.draw import Temper, uniforms
from raftune.sample.text import TextSampler, plan
from raftune.tokens import encode_prompt
from raftune.types import Candidate, Prompt

TEXTS = ["The film", "I walked out of this one because nothing in it", "A"]


def generate(folder: Path, prompts: list[Prompt], new: int, **options: Any) -> list[list[int]]:
    """Greedy tokens by the library, left-padded; cut behind end-of-sequence."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), build_tokenizer()
    tokenizer.padding_side = "left"
    batch = tokenizer([p.content for p in prompts], return_tensors="pt", padding=True, return_token_type_ids=False)
    with torch.inference_mode():
        out = model.generate(**batch, max_new_tokens=new, do_sample=False, **options)[:, batch["input_ids"].shape[1] :]
    rows = [row.tolist() for row in out]
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


def forward_logprobs(folder: Path, candidates: list[Candidate]) -> list[list[float]]:
    """Per token, one unpadded forward pass each."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), build_tokenizer()
    result = []
    for c in candidates:
        prompt = encode_prompt(tokenizer, c.prompt)
        ids = torch.tensor([[*prompt, *c.output.token_ids]])
        with torch.inference_mode():
            logprobs = model(ids).logits.double().log_softmax(-1)[0, len(prompt) - 1 : -1]
        result.append(logprobs.gather(-1, ids[0, len(prompt) :, None])[:, 0].tolist())
    return result


@pytest.mark.parametrize("family", SHARING)
def test_greedy_equals_generate(family: str, model_of: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    folder, prompts = model_of(family), prompts_of(*TEXTS)
    with caplog.at_level(logging.WARNING, "raftune"):
        candidates = TextSampler(max_new_tokens=24, top_k=1).sample(folder, prompts, 3, (0,))
    assert not caplog.records, "fell back to generate"
    wanted = generate(folder, prompts, 24)
    assert [list(c.output.token_ids) for c in candidates] == [row for row in wanted for _ in range(3)]
    assert [(c.prompt.id, c.index) for c in candidates] == [(p.id, i) for p in prompts for i in range(3)]


@pytest.mark.parametrize("family", SHARING)
def test_logprobs_equal_a_full_forward_pass(family: str, model_of: Callable[..., Path]) -> None:
    """Sampled, so that rows differ, finish at different steps and leave the batch."""
    folder = model_of(family, scale=1.0)
    candidates = TextSampler(max_new_tokens=70).sample(folder, prompts_of(*TEXTS), 5, (0,))
    assert len({c.output.token_ids for c in candidates}) == 15
    for c, wanted in zip(candidates, forward_logprobs(folder, candidates), strict=True):
        torch.testing.assert_close(list(c.output.token_logprobs), wanted, atol=2e-4, rtol=0)
        assert c.logprob == pytest.approx(sum(wanted), abs=5e-3)


def test_finished_rows_leave_and_whole_prompts_too(model_of: Callable[..., Path]) -> None:
    """End-of-sequence is likely: most rows finish early, some prompts before others."""
    folder = model_of("llama", scale=0.3)
    model = load_model(folder, torch.float32)
    head = model.get_output_embeddings().weight
    assert probe.prepare(model, 100)
    with torch.no_grad():
        head[EOS] = head.mean(0)
    calls: list[int] = []
    hook = model.register_forward_hook(
        lambda m, args, kw, out: calls.append(kw["input_ids"].shape[0]), with_kwargs=True
    )
    owner = [row for row in range(4) for _ in range(40)]
    work = Work([[1, 2, 3], [4], [5, 6], [7, 8]], owner, uniforms([("leave", i) for i in range(160)], 400))
    drawn = decode_shared(model, work, Temper(), Stop([EOS]))
    hook.remove()
    lengths = [len(row.token_ids) for row in drawn]
    assert min(lengths) < 60
    assert all(row.stopped == (row.token_ids[-1] == EOS) for row in drawn)
    assert all(EOS not in row.token_ids[:-1] for row in drawn)
    live = [sum(length > step for length in lengths) for step in range(len(calls))]
    assert calls[0] == 4  # the prefill: each prompt once
    assert all(alive <= batch <= alive / 0.9 + 1 for alive, batch in zip(live[1:], calls[1:], strict=True))
    probe.restore(model)
    expected = probe._forward_logprobs(model, work.prompt_ids[3], drawn[-1].token_ids)
    torch.testing.assert_close(list(drawn[-1].logprobs), expected, atol=1e-3, rtol=0)


def test_a_candidate_depends_on_its_address_alone(tiny: Path) -> None:
    """Not on the batch, its order, the shard or how many candidates its prompt has."""
    prompts = prompts_of(*TEXTS, "one more", "and the last")
    whole = TextSampler(max_new_tokens=20).sample(tiny, prompts, 4, (7, 1))
    by_key = {(c.prompt.id, c.index): c.output.token_ids for c in whole}
    narrow = TextSampler(max_new_tokens=20, batch_rows=3).sample(tiny, prompts[::-1], 4, (7, 1))
    assert {(c.prompt.id, c.index): c.output.token_ids for c in narrow} == by_key
    alone = TextSampler(max_new_tokens=20).sample(tiny, prompts[2:3], 2, (7, 1))
    assert [c.output.token_ids for c in alone] == [by_key["p2", 0], by_key["p2", 1]]
    other = TextSampler(max_new_tokens=20).sample(tiny, prompts, 4, (7, 2))
    assert sum(by_key[c.prompt.id, c.index] == c.output.token_ids for c in other) == 0


def test_first_token_follows_the_models_softmax(model_of: Callable[..., Path]) -> None:
    """4,000 candidates of one prompt, split over many batches, against the exact distribution."""
    folder = model_of("llama", scale=2.0)
    count = 4000
    drawn = TextSampler(max_new_tokens=1).sample(folder, prompts_of("The film"), count, (0,))
    ids = torch.tensor([c.output.token_ids[0] for c in drawn])
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        prompt = torch.tensor([encode_prompt(build_tokenizer(), drawn[0].prompt)])
        wanted = model(prompt).logits[0, -1].softmax(-1) * count
    observed = torch.bincount(ids, minlength=len(wanted)).float()
    common = wanted >= 5
    statistic = float(((observed - wanted) ** 2 / wanted)[common].sum())
    freedom = int(common.sum())
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(
    ("family", "changes"), [("llama", {}), ("mistral", {"sliding_window": 8})], ids=["ours", "generate"]
)
def test_stop_strings_end_a_row_where_they_first_appear(
    family: str, changes: dict[str, Any], model_of: Callable[..., Path]
) -> None:
    """The same draws without stop strings, cut by hand: one token is one byte."""
    folder, prompts = model_of(family, scale=1.0, **changes), prompts_of(*TEXTS)
    free = TextSampler(max_new_tokens=40).sample(folder, prompts, 6, (0,))
    letters = [c.output.text[i : i + 2] for c in free for i in (9, 14)]
    stops = tuple(sorted({pair for pair in letters if pair.isascii() and pair.isprintable() and len(pair) == 2}))
    assert len(stops) > 3
    stopped = TextSampler(max_new_tokens=40, stop=stops).sample(folder, prompts, 6, (0,))
    cut = 0
    for before, after in zip(free, stopped, strict=True):
        texts = [build_tokenizer().decode(before.output.token_ids[:n]) for n in range(len(before.output.token_ids) + 1)]
        end = next((n for n, text in enumerate(texts) if text.endswith(stops)), None)
        assert after.output.token_ids == before.output.token_ids[:end]
        cut += end is not None
        if end is not None:
            seen = build_tokenizer().decode(after.output.token_ids, skip_special_tokens=True)
            assert (after.output.finish_reason, after.output.text + texts[end][-2:]) == ("stop", seen)
    assert cut > 0


def test_the_generate_path_draws_the_same(tiny: Path) -> None:
    model = load_model(tiny, torch.float32)
    prompt_ids, owner = [[1, 2, 3, 4], [9, 8]], [0, 0, 0, 1, 1]
    work = Work(prompt_ids, owner, uniforms([("x", i) for i in range(5)], 30))
    assert probe.prepare(model, 40)
    shared = decode_shared(model, work, Temper(temperature=1.2, top_p=0.9), Stop([EOS]))
    probe.restore(model)
    slow = decode_generate(model, work, Temper(temperature=1.2, top_p=0.9), Stop([EOS]))
    assert [row.token_ids for row in slow] == [row.token_ids for row in shared]
    assert [row.stopped for row in slow] == [row.stopped for row in shared]
    for one, other in zip(slow, shared, strict=True):
        torch.testing.assert_close(list(one.logprobs), list(other.logprobs), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": 8}),
        ("gemma3_text", {"sliding_window": 8}),
        ("bloom", {}),
        ("mamba", {}),
        ("gemma2", {}),
    ],
)
def test_others_fall_back_to_generate_and_say_so_once(
    family: str,
    changes: dict[str, Any],
    model_of: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "_said", set())  # whatever other tests made it say before
    folder, prompts = model_of(family, **changes), prompts_of(*TEXTS)
    with caplog.at_level(logging.WARNING, "raftune"):
        candidates = TextSampler(max_new_tokens=12, top_k=1).sample(folder, prompts, 2, (0,))
        resident.free()
        TextSampler(max_new_tokens=12, top_k=1).sample(folder, prompts, 2, (0,))
    said = [record.message for record in caplog.records if record.name == "raftune"]
    assert len(said) == 1
    assert "model.generate" in said[0]
    assert [list(c.output.token_ids) for c in candidates[::2]] == generate(folder, prompts, 12)
    for c, wanted in zip(candidates, forward_logprobs(folder, candidates), strict=True):
        torch.testing.assert_close(list(c.output.token_logprobs), wanted, atol=5e-4, rtol=0)


def test_a_model_that_ignores_the_prefix_is_found_out(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe measures: break the shared attention and it must refuse."""
    model = load_model(tiny, torch.float32)
    monkeypatch.setattr(probe, "_verdicts", {})
    monkeypatch.setattr(
        "raftune.sample.attention.SharedPrefix.ungroup", lambda self, grid, group: grid.flatten(0, 1)[:3]
    )
    assert not probe.prepare(model, 20)


def test_adapters_are_sampled_with(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(tiny)
    torch.manual_seed(5)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    build_tokenizer().save_pretrained(tmp_path / "merged")
    prompts = prompts_of(*TEXTS)
    found = TextSampler(max_new_tokens=16, top_k=1).sample(tmp_path / "adapter", prompts, 1, (0,))
    assert [list(c.output.token_ids) for c in found] == generate(tmp_path / "merged", prompts, 16)
    assert [list(c.output.token_ids) for c in found] != generate(tiny, prompts, 16)


def test_another_checkpoint_in_the_same_folder_is_noticed(model_of: Callable[..., Path], tmp_path: Path) -> None:
    import shutil

    from conftest import build_model

    sampler, prompts = TextSampler(max_new_tokens=16, top_k=1), prompts_of(*TEXTS)
    shutil.copytree(model_of("llama"), tmp_path / "policy")
    before = sampler.sample(tmp_path / "policy", prompts, 1, (0,))
    shutil.rmtree(tmp_path / "policy")
    build_model(tmp_path / "policy", seed=9)
    after = sampler.sample(tmp_path / "policy", prompts, 1, (0,))
    assert [list(c.output.token_ids) for c in after] == generate(tmp_path / "policy", prompts, 16)
    assert [c.output for c in before] != [c.output for c in after]


def test_bfloat16_stays_close_to_its_own_forward_pass(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFTUNE_DTYPE", "bfloat16")
    candidates = TextSampler(max_new_tokens=24).sample(tiny, prompts_of(*TEXTS), 4, (0,))
    model, _ = resident.get(tiny, "causal", lambda: pytest.fail("was not kept")).alone()
    assert model.dtype == torch.bfloat16
    for c, wanted in zip(candidates, forward_logprobs(tiny, candidates), strict=True):
        gaps = [abs(a - b) for a, b in zip(c.output.token_logprobs, wanted, strict=True)]
        assert sum(gaps) / len(gaps) < 0.1


def test_chat_prompts_go_through_the_template(tiny: Path) -> None:
    chat = Prompt("c", ({"role": "user", "content": "Hi"},))
    tokenizer = build_tokenizer()
    ids = encode_prompt(tokenizer, chat)
    assert tokenizer.decode(ids) == "<s>[user]Hi</s>[assistant]"
    assert ids.count(tokenizer.bos_token_id) == 1
    assert TextSampler(max_new_tokens=4).sample(tiny, [chat], 2, (0,))[1].prompt.is_chat
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="chat template"):
        encode_prompt(tokenizer, chat)


def test_plan_keeps_its_bounds() -> None:
    lengths = [5, 50, 7, 200, 6]
    pairs = [(row, index) for row in range(5) for index in range(4)]
    batches = plan(pairs, lengths, max_rows=6, max_tokens=120, new_tokens=10)
    assert sorted(pair for batch in batches for pair in batch) == pairs
    for batch in batches:
        rows = {row for row, _ in batch}
        assert len(batch) <= 6
        assert sum(lengths[row] for row in rows) + 10 * len(batch) <= 120 or len(batch) == 1


def test_the_generate_path_leaves_the_models_own_penalties_out(model_of: Callable[..., Path], tmp_path: Path) -> None:
    import shutil

    plain = model_of("mamba")
    shutil.copytree(plain, tmp_path / "penal")
    settings = {
        "eos_token_id": EOS,
        "repetition_penalty": 50.0,
        "suppress_tokens": [10, 11],
        "do_sample": True,
        "top_k": 3,
    }
    (tmp_path / "penal" / "generation_config.json").write_text(json.dumps(settings))
    one, other = (
        TextSampler(max_new_tokens=12).sample(p, prompts_of(*TEXTS), 4, (0,)) for p in (plain, tmp_path / "penal")
    )
    assert [c.output for c in one] == [c.output for c in other]


def test_broken_weights_are_not_sampled_from(tiny: Path) -> None:
    model = load_model(tiny, torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = float("nan")
    assert probe.prepare(load_model(tiny, torch.float32), 20)
    model.set_attn_implementation("sdpa")
    with pytest.raises(UserError, match="not numbers"):
        decode_shared(model, Work([[1, 2]], [0], uniforms([(0,)], 3)), Temper(), NEVER)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UserError, match=r"sample\.stop"):
        TextSampler(stop=("a", ""))


def test_k_below_one_is_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"sample\.k"):
        TextSampler().sample(tiny, prompts_of("a"), 0, (0,))


def test_what_does_not_fit_into_the_model_is_named(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"prompt 'p1' has 200 tokens; with 60 new ones it passes the model's 256"):
        TextSampler(max_new_tokens=60).sample(tiny, prompts_of("a", "b" * 200), 1, (0,))


def test_rows_must_be_sorted_by_prompt() -> None:
    with pytest.raises(ValueError, match="sorted"):
        Work([[1], [2]], [1, 0], uniforms([(0,), (1,)], 2))


def test_never_never_stops() -> None:
    assert not NEVER.finished(torch.tensor([[EOS], [3]])).any()
