"""vLLM's side of the sampling benchmark, for an interpreter that has it: `PYTHON bench/vllm_side.py --case CASE`.

The work is that of ``bench/sample.py``: the same prompts, K and number of new tokens, no early end. Prints
``RESULT {"rate": …, "peak_gb": …}``, as a side of ``bench/paired.py`` does; the engine's start and a warm-up are
excluded, and the peak memory is that of this process and its children together, as vLLM computes in
processes of its own. The cache of ``VLLM_CPU_KVCACHE_SPACE`` (GB, 4 unless said) is in it as far as it was touched.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from typing import Any

import machine
import psutil
from paired import real_model
from sample import CASES, prompt_ids

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


class Peak(threading.Thread):
    """The most memory of this process and those it started (PSS: what they share counts once), looked at twice a
    second; bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0
        self.over = threading.Event()

    def run(self) -> None:
        me = psutil.Process()
        while not self.over.wait(0.5):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.NoSuchProcess:
                    continue
            self.bytes = max(self.bytes, total)


def measure(length: int, prompts: int, k: int, new: int) -> dict[str, Any]:
    from raftune.sample.engine import Engine, EngineOptions
    from raftune.sample.served import Job
    from raftune.sample.weights import Weights

    peak = Peak()
    peak.start()
    start = time.perf_counter()
    engine = Engine(EngineOptions(max_model_len=length + new, engine={"max_num_seqs": prompts * k}))
    engine.ready(Weights.of(real_model()))
    started = time.perf_counter() - start

    def once(steps: int) -> float:
        start = time.perf_counter()
        seeds = [1000 * row for row in range(prompts)]
        drawn = engine.draw(
            Job(prompt_ids(length, prompts), seeds, k, steps, 1.0, None, None, (), ()), lambda done: None
        )
        assert sum(len(one.token_ids) for of_prompt in drawn for one in of_prompt) == prompts * k * steps
        return time.perf_counter() - start

    once(4)
    seconds = once(new)
    peak.over.set()
    peak.join()
    engine.stop()
    figures = {"rate": prompts * k * new / seconds, "peak_gb": peak.bytes / 1024**3, "start_s": started}
    return figures | {"versions": machine.versions()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", required=True, choices=CASES)
    print("RESULT " + json.dumps(measure(**CASES[parser.parse_args().case])), flush=True)
