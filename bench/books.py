"""Bookkeeping at scale: rank, select and store a round of candidates that are on disk with their rewards.

What is timed is a round from there: read the parts of the reward, weigh them, choose the best of each prompt's K,
write ``scored.parquet`` and ``chosen.parquet``, the figures of the round and those that describe it. Sampling and the
reward's own work are not: the builder writes the shards and the parts (40 tokens and 150 characters an output) in a
stream, in a process of its own.

    python bench/books.py                 # 100k and 1M: seconds, bytes, peak memory
    python bench/books.py --rows 10000000 # needs about 10 GB of disk
    python bench/books.py --peer SRC      # 100k also with the package in SRC (an older one), A B A B

``floor_s`` is what the disk and the encoder ask for at least: reading every shard's columns once and writing them once,
without any bookkeeping. ``over_floor``: seconds over it. ``memory_gb``: the peak above what imports hold. ``cpu_s``: of
all threads, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

K, TOKENS, WORDS = 8, 40, 25


def build(folder: Path, rows: int, shard: int) -> None:
    """The sampled shards and the rewards' parts of round 1, a shard at a time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from raftune.store import Run

    draw, version = np.random.default_rng(0), rewards().version
    vocabulary = np.array([f"w{i:04d}" for i in range(5000)])
    Run(folder, "model").close()
    here = folder / "rounds" / "0001"
    for part in ("candidates", "scoring"):
        (here / part).mkdir(parents=True)
    prompts = rows // K
    pids = [f"p{i:08d}" for i in range(prompts)]
    contents = [f"The opening number {i}, a line of some length that is sampled from" for i in range(prompts)]
    (here / "policy").mkdir()  # tuned already
    chosen = {"chat": pa.array([False] * prompts), "columns": pa.array(["{}"] * prompts)}
    pq.write_table(pa.table({"prompt_id": pids, "prompt": contents, **chosen}), here / "prompts.parquet")
    for number, first in enumerate(range(0, prompts, shard)):
        which = np.repeat(np.arange(first, min(first + shard, prompts)), K)
        count = len(which)
        words = vocabulary[draw.zipf(1.3, (count, WORDS)) % 5000]
        ends = pa.array(np.arange(0, TOKENS * count + 1, TOKENS, dtype=np.int32))
        ids = pa.array((draw.zipf(1.2, TOKENS * count) % 49152).astype(np.int32))
        logprobs = pa.array(-draw.exponential(2, TOKENS * count).astype(np.float32))
        reward = np.round(draw.normal(0, 0.5, count), 4)
        columns: dict[str, Any] = {
            "prompt_id": pa.array(pids).take(pa.array(which)),
            "prompt": pa.array(contents).take(pa.array(which)),
            "chat": pa.array(np.zeros(count, bool)),
            "columns": pa.array(["{}"] * count),
            "index": pa.array(np.tile(np.arange(K, dtype=np.int32), count // K)),
            "source": pa.array(["policy"] * count),
            "logprob": pa.array(draw.normal(-80, 10, count)),
            "output": pa.array([" ".join(row) for row in words.tolist()]),
            "token_ids": pa.ListArray.from_arrays(ends, ids),
            "token_logprobs": pa.ListArray.from_arrays(ends, logprobs),
            "finish_reason": pa.array(np.where(draw.random(count) < 0.3, "stop", "length").tolist()),
        }
        pq.write_table(pa.table(columns), here / "candidates" / f"{number:05d}.parquet")
        parts = {"version": version, "parts": {"mood": reward.tolist()}}
        (here / "scoring" / f"{number:05d}.json").write_text(json.dumps(parts))


class Nothing:
    """Stands for the sampler, the reward and the learner, none of which has anything left to do."""

    name = "mood"

    def __call__(self, *_: Any) -> Any:
        raise AssertionError("everything is sampled and scored")

    sample = tune = __call__


def rewards() -> Any:
    from raftune.score import Rewards, Weighted

    return Rewards((Weighted(Nothing()),))


def books(folder: Path, shard: int) -> dict[str, float]:
    """The round, from what is on disk to its figures: seconds of each part and memory above the start's."""
    from raftune import memory, pick
    from raftune.config import TextRecipe
    from raftune.experiment import Experiment
    from raftune.loop import raft
    from raftune.rank import Best
    from raftune.store import Run

    modality = pick.modality("text")  # loads torch, which every run has in memory
    text = {"model": "m", "prompts": "p", "reward": "vader", "rounds": 2, "evaluate": {"every": 2}}
    recipe = TextRecipe.model_validate(text)
    parts: Any = SimpleNamespace(recipe=recipe, modality=modality, select=Best(), sources=None, shards=None)
    parts.rewards = parts.shaped = rewards()
    parts.monitor_names = []
    with Run(folder, "model") as run:
        before = _resident()
        with memory.stage() as here:
            start, cpu = time.perf_counter(), time.process_time()
            next(raft(run, Nothing(), Nothing(), parts.rewards, Nothing(), K, 1, Best(), shard=shard))
            stored = time.perf_counter()
            metrics = Experiment(parts, run).complete(1)
            end = time.perf_counter()
    written = sum((folder / "rounds" / "0001" / f"{name}.parquet").stat().st_size for name in ("scored", "chosen"))
    return {
        "seconds": end - start,
        "cpu_s": time.process_time() - cpu,
        "store_s": stored - start,
        "figures_s": end - stored,
        "memory_gb": ((here.most or 0) - before) / 1e9,
        "written_mb": written / 1e6,
        "sample_reward": metrics["sample/reward_mean"],
        "chosen_reward": metrics["chosen/reward_mean"],
        "distinct_2": metrics["sample/distinct_2"],
    }


def floor(folder: Path, shard: int) -> dict[str, float]:
    """Every shard read once and written once, as it is: what decoding and encoding ask for."""
    import pyarrow.parquet as pq

    start, cpu, writer, size = time.perf_counter(), time.process_time(), None, 0
    for path in sorted((folder / "rounds" / "0001" / "candidates").iterdir()):
        table = pq.read_table(path)
        writer = writer or pq.ParquetWriter(folder / "floor", table.schema)
        writer.write_table(table)
        size += table.nbytes
    assert writer is not None
    writer.close()
    return {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu, "raw_mb": size / 1e6}


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def run_side(side: str, source: Path, rows: int, shard: int) -> dict[str, float]:
    """Build in one process, do the books in another."""
    with tempfile.TemporaryDirectory() as scratch:
        results: dict[str, float] = {}
        for step in ("build", side):
            command = [sys.executable, __file__, "--step", step, "--rows", str(rows), "--shard", str(shard)]
            environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(
                [*command, "--folder", f"{scratch}/run"], capture_output=True, text=True, env=environment
            )
            if done.returncode:
                sys.exit(f"{step}: failed\n{done.stderr[-3000:]}")
            results |= json.loads(done.stdout.splitlines()[-1])
        return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--shard", type=int, default=1024, help="prompts a file of candidates")
    parser.add_argument("--peer", type=Path, help="the folder src of an older version")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        done = {"build": build, "books": books, "floor": floor}[options.step]
        arguments = (options.folder, *options.rows, options.shard) if done is build else (options.folder, options.shard)
        print(json.dumps(done(*arguments) or {}))
        return
    ours = Path(__file__).resolve().parent.parent / "src"
    sides = {"ours": ours} | ({"peer": options.peer.resolve()} if options.peer else {})
    for rows in options.rows:
        for _ in range(options.pairs):
            for side, source in sides.items():
                found = run_side("books", source, rows, options.shard)
                least = run_side("floor", source, rows, options.shard)
                found |= {"floor_s": least["seconds"], "floor_cpu_s": least["cpu_s"], "raw_mb": least["raw_mb"]}
                found["over_floor"] = found["seconds"] / least["seconds"]
                rounded = {name: float(f"{value:.4g}") for name, value in found.items()}
                print(json.dumps({"side": side, "rows": rows, "shard": options.shard, **rounded}), flush=True)


if __name__ == "__main__":
    main()
