"""vLLM's engine in this process, against our own sampler and a full forward pass."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import NEW, OPTIONS, ids, share

from raftune.likelihood import logprobs
from raftune.resident import causal, resident
from raftune.sample.engine import EngineOptions, engine
from raftune.sample.served import VllmSampler
from raftune.sample.text import TextSampler
from raftune.tokens import encode_prompt
from raftune.types import Prompt

BF16 = 2.0**-8  # the largest relative rounding error of bfloat16


def vllm(**options: object) -> VllmSampler:
    return VllmSampler(engine(OPTIONS), **{"max_new_tokens": NEW, **options})


def ours(**options: object) -> TextSampler:
    return TextSampler(**{"max_new_tokens": NEW, **options})


def test_greedy_answers_are_ours(smollm: str, prompts: list[Prompt]) -> None:
    """In float32: token by token, with ends and log-probabilities."""
    one = vllm(top_k=1).sample(smollm, prompts, 2, (0,))
    other = ours(top_k=1).sample(smollm, prompts, 2, (0,))
    print(f"greedy, float32: {share(one, other):.0%} of {len(prompts)} prompts equal over {NEW} tokens")
    assert share(one, other) >= 0.97
    for a, b in zip(one, other, strict=True):
        if a.output.token_ids == b.output.token_ids:
            assert (a.output.text, a.output.finish_reason) == (b.output.text, b.output.finish_reason)
            assert a.output.token_logprobs == pytest.approx(b.output.token_logprobs, abs=2e-3)


def test_log_probabilities_are_untempered_and_whole(smollm: str, prompts: list[Prompt]) -> None:
    """Whatever the draw was tempered and cut by: what a full forward pass of ours says of the drawn tokens."""
    for options in ({}, {"temperature": 0.5, "top_k": 20}, {"temperature": 1.3, "top_p": 0.8}):
        drawn = vllm(**options).sample(smollm, prompts[:16], 4, (1,))
        for one, (total, count) in zip(drawn, logprobs(smollm, drawn), strict=True):
            assert count == len(one.output.token_ids)
            assert one.logprob == pytest.approx(total, abs=2e-3 * count)


def test_draws_follow_the_softmax(smollm: str) -> None:
    """First tokens of one prompt, 2000 times, against the model's own probabilities of the ten likeliest."""
    prompt = Prompt("p", "The film was")
    draws = vllm(max_new_tokens=1, temperature=0.7, top_k=10).sample(smollm, [prompt], 2000, (5,))
    model, tokenizer = causal(smollm)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([encode_prompt(tokenizer, prompt)])).logits[0, -1]
    top = logits.topk(10)
    expected = (torch.softmax(top.values / 0.7, -1) * 2000).tolist()
    counts = [sum(ids([one])[0][0] == token for one in draws) for token in top.indices.tolist()]
    assert sum(counts) == 2000
    assert sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True)) < 27.9  # p = 0.001, 9 degrees


def test_the_same_address_draws_the_same(smollm: str, prompts: list[Prompt]) -> None:
    first = vllm().sample(smollm, prompts[:12], 4, (0, 1))
    assert vllm().sample(smollm, prompts[:12], 4, (0, 1)) == first
    assert share(vllm().sample(smollm, prompts[:12], 4, (0, 2)), first) < 0.1
    fewer = vllm().sample(smollm, prompts[:12], 2, (0, 1))  # in other batches: the same but for rounding
    assert share(fewer, [one for one in first if one.index < 2]) > 0.9
    assert len(set(ids(first))) > 40


def test_more_prompt_tokens_than_a_step_takes(smollm: str, prompts: list[Prompt]) -> None:
    """A shard of long prompts, some 10000 tokens of them; vLLM's steps take fewer."""
    long = [Prompt(one.id, " ".join([one.content] * 30)) for one in prompts]
    drawn = vllm(max_new_tokens=4).sample(smollm, long, 4, (0, 1))
    assert len(drawn) == 4 * len(long)
    for one, (total, count) in zip(drawn, logprobs(smollm, drawn), strict=True):
        assert one.logprob == pytest.approx(total, abs=2e-3 * count)


def test_stop_strings_and_ends(smollm: str, prompts: list[Prompt]) -> None:
    """As ours: kept in the tokens, cut from the text; end-of-sequence is kept, too."""
    one = vllm(top_k=1, stop=(" the", ".")).sample(smollm, prompts, 1, (0,))
    other = ours(top_k=1, stop=(" the", ".")).sample(smollm, prompts, 1, (0,))
    assert share(one, other) >= 0.97
    assert [a.output.text for a in one if a in other] == [b.output.text for b in other if b in one]
    equal = [(a.output, b.output) for a, b in zip(one, other, strict=True) if ids([a]) == ids([b])]
    assert all((a.text, a.finish_reason) == (b.text, b.finish_reason) for a, b in equal)
    assert sum(a.finish_reason == "stop" for a, _ in equal) > 20
    chats = [Prompt(f"c{i}", ({"role": "user", "content": f"Say only the number {i}."},)) for i in range(6)]
    said = vllm(top_k=1).sample(smollm, chats, 1, (0,))
    assert share(said, ours(top_k=1).sample(smollm, chats, 1, (0,))) >= 5 / 6
    ended = [one.output for one in said if one.output.finish_reason == "stop"]
    assert ended
    end = causal(smollm)[1].eos_token_id
    assert all(output.token_ids[-1] == end and "<|im_end|>" not in output.text for output in ended)


def test_new_weights_are_used(smollm: str, tuned: Path, prompts: list[Prompt]) -> None:
    before = vllm(top_k=1).sample(smollm, prompts, 1, (0,))
    after = vllm(top_k=1).sample(tuned, prompts, 1, (0,))
    assert share(before, after) < 0.5
    assert share(after, ours(top_k=1).sample(tuned, prompts, 1, (0,))) >= 0.95
    again = vllm(top_k=1).sample(smollm, prompts, 1, (0,))
    assert again == before


def test_an_adapter_is_used(smollm: str, adapter: Path, prompts: list[Prompt]) -> None:
    """Ours merges it into the base, vLLM adds it up: the same but for rounding."""
    before = vllm(top_k=1).sample(smollm, prompts, 1, (0,))
    after = vllm(top_k=1).sample(adapter, prompts, 1, (0,))
    assert share(before, after) < 0.5
    assert share(after, ours(top_k=1).sample(adapter, prompts, 1, (0,))) >= 0.95
    assert share(vllm(top_k=1).sample(smollm, prompts, 1, (0,)), before) >= 0.97  # started anew in between


def test_whole_weights_reach_an_engine_with_room_for_adapters(
    smollm: str, adapter: Path, tuned: Path, prompts: list[Prompt]
) -> None:
    one = vllm(top_k=1).sample(adapter, prompts, 1, (0,))
    other = vllm(top_k=1).sample(tuned, prompts, 1, (0,))
    assert share(other, ours(top_k=1).sample(tuned, prompts, 1, (0,))) >= 0.95
    assert share(vllm(top_k=1).sample(adapter, prompts, 1, (0,)), one) >= 0.97  # on its own base again


def test_bfloat16_differs_where_two_tokens_are_near(
    smollm: str, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where greedy answers part, our logits of the two tokens are within what bfloat16 rounds away."""
    engine(OPTIONS).stop()
    monkeypatch.setenv("RAFTUNE_DTYPE", "bfloat16")
    half = EngineOptions(max_model_len=512, idle="stop")
    one = VllmSampler(engine(half), max_new_tokens=NEW, top_k=1).sample(smollm, prompts, 1, (0,))
    drawn = VllmSampler(engine(half), max_new_tokens=NEW).sample(smollm, prompts[:16], 4, (1,))
    other = ours(top_k=1).sample(smollm, prompts, 1, (0,))
    assert engine(half).stopped  # its memory was wanted
    model, tokenizer = causal(smollm)
    gaps = []
    for a, b in zip(one, other, strict=True):
        theirs, mine = a.output.token_ids, b.output.token_ids
        at = next((i for i, (x, y) in enumerate(zip(theirs, mine, strict=False)) if x != y), None)
        if at is None:
            continue
        with torch.inference_mode():
            so_far = torch.tensor([[*encode_prompt(tokenizer, a.prompt), *mine[:at]]])
            logits = model(input_ids=so_far).logits[0, -1].float()
        rounding = BF16 * float(logits.max().abs())  # of one logit
        gaps.append(float(logits[mine[at]] - logits[theirs[at]]).__abs__() / rounding)
        assert set(logits.topk(3).indices.tolist()) >= {mine[at], theirs[at]}
    print(
        f"greedy, bfloat16: {share(one, other):.0%} equal over {NEW} tokens; largest gap {max(gaps, default=0):.1f} ulp"
    )
    assert share(one, other) > 0.4
    assert max(gaps, default=0) <= 8
    errors = [abs(c.logprob - total) / n for c, (total, n) in zip(drawn, logprobs(smollm, drawn), strict=True)]
    print(f"log-probabilities, bfloat16, nats a token: {sum(errors) / len(errors):.4f} off, at most {max(errors):.4f}")
    assert sum(errors) / len(errors) < 0.03
    assert max(errors) < 0.15
    assert not math.isnan(sum(errors))
    resident.free()


def test_what_the_engine_refuses_is_one_line(smollm: str, prompts: list[Prompt]) -> None:
    from raftune.errors import UserError

    engine(OPTIONS).stop()
    broken = VllmSampler(engine(EngineOptions(engine={"quantization": "no such"})))
    with pytest.raises(UserError, match=r"sample.backend: vllm does not start with .*: ") as error:
        broken.sample(smollm, prompts[:1], 1, (0,))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"sample.vllm.idle: on a CPU vLLM cannot sleep; use stay or stop"):
        VllmSampler(engine(EngineOptions(idle="sleep"))).sample(smollm, prompts[:1], 1, (0,))
