"""`vllm serve` as a process of its own, by its URL: whole weights, adapters, and what it says when it cannot."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import NEW, ids, share

from raftune.errors import UserError
from raftune.likelihood import logprobs
from raftune.models import load_model
from raftune.sample.served import VllmSampler
from raftune.sample.server import Server
from raftune.sample.text import TextSampler
from raftune.sample.worker import EXTENSION
from raftune.types import Prompt

pytestmark = pytest.mark.usefixtures("free")


@pytest.fixture(scope="module")
def url(smollm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free_port:
        free_port.bind(("127.0.0.1", 0))
        port = free_port.getsockname()[1]
    # `vllm serve` itself: the CPU wheel's command looks for the version of a package of another name
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", smollm]
    command += ["--host", "127.0.0.1", "--port", str(port), "--worker-extension-cls", EXTENSION]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
    command += ["--no-enable-chunked-prefill", "--enable-lora", "--max-lora-rank", "8"]
    allowed = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as written:
        process = subprocess.Popen(
            list(map(str, command)),
            env={**os.environ, **allowed},
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
    where = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            time.sleep(1)
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"{where}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                continue
        yield where
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def drawn(url: str, policy: str | Path, prompts: list[Prompt], k: int = 1, **options: object) -> list:
    return VllmSampler(Server(url), **{"max_new_tokens": NEW, **options}).sample(policy, prompts, k, (0,))


def ours(policy: str | Path, prompts: list[Prompt]) -> list:
    return TextSampler(max_new_tokens=NEW, top_k=1).sample(policy, prompts, 1, (0,))


def test_whole_weights_and_adapters(url: str, smollm: str, tuned: Path, adapter: Path, prompts: list[Prompt]) -> None:
    """In every order: what answers is the policy that was asked for."""
    prompts = prompts[:24]
    expected = {policy: ours(policy, prompts) for policy in (smollm, tuned, adapter)}
    for policy in (smollm, tuned, adapter, tuned, smollm, adapter):
        found = drawn(url, policy, prompts, top_k=1)
        for other, answers in expected.items():
            close = share(found, answers)
            assert (close >= 0.95) if other == policy else (close < 0.6), (policy, other, close)


def test_log_probabilities_and_seeds(url: str, tuned: Path, prompts: list[Prompt]) -> None:
    found = drawn(url, tuned, prompts[:8], 4, temperature=0.7, top_p=0.9)
    for one, (total, count) in zip(found, logprobs(tuned, found), strict=True):
        assert one.logprob == pytest.approx(total, abs=2e-3 * count)
    assert share(drawn(url, tuned, prompts[:8], 4, temperature=0.7, top_p=0.9), found) > 0.9
    assert len(set(ids(found))) > 28


def test_stop_strings(url: str, smollm: str, prompts: list[Prompt]) -> None:
    found = drawn(url, smollm, prompts[:24], top_k=1, stop=(" the",))
    other = TextSampler(max_new_tokens=NEW, top_k=1, stop=(" the",)).sample(smollm, prompts[:24], 1, (0,))
    assert share(found, other) >= 0.95
    equal = [(a.output, b.output) for a, b in zip(found, other, strict=True) if ids([a]) == ids([b])]
    assert all((a.text, a.finish_reason) == (b.text, b.finish_reason) for a, b in equal)
    assert any(a.finish_reason == "stop" for a, _ in equal)


def test_a_folder_without_weights_for_the_server(url: str, smollm: str, tuned: Path, prompts: list[Prompt]) -> None:
    """Told in one line; and at the next asking the server has whole weights again."""
    hollow = tuned.parent / "hollow"
    shutil.copytree(tuned, hollow, ignore=shutil.ignore_patterns("*.safetensors"))
    (hollow / "weights.bin").write_bytes(b"none")
    with pytest.raises(UserError, match=r"/collective_rpc says .*; does the server see the folder") as error:
        drawn(url, hollow, prompts[:1])
    assert "\n" not in str(error.value)
    assert share(drawn(url, smollm, prompts[:8], top_k=1), ours(smollm, prompts[:8])) >= 0.8


def test_a_large_adapter_is_refused_in_one_line(url: str, smollm: str, prompts: list[Prompt], tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    large = get_peft_model(load_model(smollm, torch.float32), LoraConfig(task_type="CAUSAL_LM", r=32))
    large.peft_config["default"].base_model_name_or_path = smollm
    large.save_pretrained(tmp_path / "large")
    with pytest.raises(UserError, match=r"/v1/load_lora_adapter says .*max_lora_rank.*--max-lora-rank") as error:
        drawn(url, tmp_path / "large", prompts[:1])
    assert "\n" not in str(error.value)
