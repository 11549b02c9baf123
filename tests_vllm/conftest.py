"""A real vLLM with the real SmolLM2, in an environment of its own: `make test-vllm`."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAFTUNE_DTYPE", "float32")  # sharp comparisons; bfloat16 is tested on its own
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from raftune.models import locate
from raftune.sample.engine import EngineOptions, engine
from raftune.sample.text import TextSampler
from raftune.tune.lora import Lora
from raftune.tune.text import TextLearner
from raftune.types import Candidate, Prompt, Scored

ROOT = Path(__file__).parent.parent
OPTIONS = EngineOptions(dtype="float32", max_model_len=512)
NEW = 24


@pytest.fixture(scope="session")
def smollm() -> str:
    return locate("asset:smollm2-135m-instruct")


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    lines = (ROOT / "recipes" / "openings.jsonl").read_text(encoding="utf-8").splitlines()
    return [Prompt(f"p{number}", json.loads(line)["prompt"]) for number, line in enumerate(lines)][:32]


@pytest.fixture(scope="session")
def lesson(smollm: str, prompts: list[Prompt]) -> list[Scored]:
    """Enough to change what the model says."""
    return [Scored(one, 1.0) for one in TextSampler(max_new_tokens=12).sample(smollm, prompts[:16], 1, (0,))]


@pytest.fixture(scope="session")
def tuned(smollm: str, lesson: list[Scored], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "policy"
    TextLearner(learning_rate=1e-4, epochs=2).tune(smollm, lesson, out, (0,))
    return out


@pytest.fixture(scope="session")
def adapter(smollm: str, lesson: list[Scored], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter") / "policy"
    TextLearner(learning_rate=1e-3, epochs=2, lora=Lora(r=4, alpha=32)).tune(smollm, lesson, out, (0,))
    return out


@pytest.fixture(scope="module")
def free() -> None:
    """No engine of an earlier module is in memory."""
    engine(OPTIONS).stop()


def ids(candidates: Sequence[Candidate]) -> list[tuple[int, ...]]:
    return [one.output.token_ids for one in candidates]


def share(one: Sequence[Candidate], other: Sequence[Candidate]) -> float:
    """Of equal answers, token by token."""
    return sum(a == b for a, b in zip(ids(one), ids(other), strict=True)) / len(one)
