"""What the machine allows, measured in the process of our side, right after the figure that it stands beside.

- **peak matmul**: the best rate of a large square matmul and of ``[rows, hidden] @ [hidden, intermediate]`` over as
  many distinct weights as the model has layers, in the precision of sampling (bfloat16 where the hardware has it).
- **the model's own matmul limit**: the time of the model's linear layers alone, all layers with their own weights, so
  that these stream from memory, and the output layer at the rows where logits are needed. A decoding step has a row a
  candidate; tuning adds the two backward matmuls of each layer, at the tokens of an optimiser step.
- **memory**: the best rate of a copy and of a triad (a = b + 3 c) over 256 MB; a decoding step reads the weights once,
  and the keys and values of what stands there (a shared prompt's once). Tuning in mixed precision moves 52 bytes a
  parameter and step, however few tokens it has: weights to bfloat16 (6), gradients to float32 (6), their norm (4) and
  clipping (8), AdamW (28).

A sampler's limit is rows / max(matmul, memory) tokens a second; no prefill is in it, nor attention's own matmuls,
norms, activations and the draw. Tuning's is the matmuls' alone; **both** is one after the other, as a step has them.
Best of five everywhere: a limit is what the machine can do, not what it mostly does.

    python bench/limits.py            # this machine alone: squares, rows, cold and warm weights, one thread and all
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import machine
import torch
from torch.nn.functional import linear

SQUARES = {"cpu": (1024, 2048, 4096), "mps": (2048, 4096), "cuda": (4096, 8192, 16384)}
OF_A_STEP = 52  # bytes a parameter that a tuning step moves, in float32 under bfloat16
STREAMED = 2**28  # bytes of each tensor: far more than a cache holds


def best(work: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the quickest of some runs after one to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = machine.clock()
        work()
        seconds.append(machine.clock() - start)
    return min(seconds)


def square_rate(size: int, dtype: torch.dtype, where: torch.device) -> float:
    """FLOP/s of a square matmul."""
    a, b = (torch.randn(size, size, device=where).to(dtype) for _ in range(2))
    return 2 * size**3 / best(lambda: a @ b)


def layer_rate(rows: int, inside: int, outside: int, weights: int, dtype: torch.dtype, where: torch.device) -> float:
    """FLOP/s of ``[rows, inside] @ [inside, outside]`` over so many weights in turn."""
    x = torch.randn(rows, inside, device=where).to(dtype)
    layers = [torch.randn(outside, inside, device=where).to(dtype) for _ in range(weights)]
    return 2 * rows * inside * outside * weights / best(lambda: [linear(x, layer) for layer in layers])


def bandwidth(where: torch.device) -> float:
    """Bytes/s read and written."""
    a, b, c = (torch.ones(STREAMED // 4, device=where) for _ in range(3))
    copy = 2 * STREAMED / best(lambda: a.copy_(b))
    triad = 3 * STREAMED / best(lambda: torch.add(b, c, alpha=3, out=a))
    return max(copy, triad)


@dataclass(frozen=True)
class Layers:
    """The linear layers of a causal model, in their order; the one that makes logits apart."""

    body: Sequence[torch.Tensor]
    head: torch.Tensor

    @classmethod
    def of(cls, model: Any) -> Layers:
        head = model.get_output_embeddings()
        body = [one.weight for one in model.modules() if isinstance(one, torch.nn.Linear) and one is not head]
        return cls([weight.detach() for weight in body], head.weight.detach())

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for weight in (*self.body, self.head))

    def flops(self, rows: int, head_rows: int, backward: bool = False) -> float:
        """Of one pass; the two backward matmuls are as dear as the forward one."""
        once = 2 * (rows * sum(weight.numel() for weight in self.body) + head_rows * self.head.numel())
        return 3 * once if backward else once

    def seconds(self, rows: int, head_rows: int, backward: bool = False) -> float:
        """Of the matmuls of one pass, alone."""
        inputs: dict[tuple[int, int], torch.Tensor] = {}

        def random(count: int, width: int) -> torch.Tensor:
            if (count, width) not in inputs:
                inputs[count, width] = torch.randn(count, width, device=self.head.device).to(self.head.dtype)
            return inputs[count, width]

        def once() -> None:
            for count, weight in [*((rows, weight) for weight in self.body), (head_rows, self.head)]:
                outside, inside = weight.shape
                linear(random(count, inside), weight)
                if backward:
                    gradient = random(count, outside)
                    gradient @ weight
                    gradient.T @ random(count, inside)

        with torch.inference_mode():
            return best(once)


def cache_bytes(model: Any, tokens: float) -> float:
    """Of the keys and values of so many tokens."""
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return tokens * 2 * config.num_hidden_layers * config.num_key_value_heads * width * model.dtype.itemsize


def peaks(model: Any, rows: int) -> dict[str, float]:
    """GFLOP/s of the square and of the feed-forward matmul, GB/s of memory, threads."""
    config, where, dtype = model.config.get_text_config(), model.device, model.dtype
    with torch.inference_mode():
        squares = [square_rate(size, dtype, where) for size in SQUARES[where.type]]
        shape = (config.hidden_size, config.intermediate_size, config.num_hidden_layers)
        return {
            "square_gflops": max(squares) / 1e9,
            "layer_gflops": layer_rate(rows, *shape, dtype, where) / 1e9,
            "memory_gbs": bandwidth(where) / 1e9,
            "threads": torch.get_num_threads(),
        }


def of_decoding(model: Any, prompts: int, length: float, k: int, new: int) -> dict[str, float]:
    """Tokens a second that the machine allows with K candidates of each prompt in one batch."""
    layers, rows = Layers.of(model), prompts * k
    found = peaks(model, rows)
    matmul = layers.seconds(rows, rows)
    read = layers.nbytes + cache_bytes(model, prompts * length + rows * new / 2)
    memory = read / (found["memory_gbs"] * 1e9)
    own = {"model_gflops": layers.flops(rows, rows) / matmul / 1e9}
    return found | own | {"by_matmul": rows / matmul, "by_memory": rows / memory, "limit": rows / max(matmul, memory)}


def of_tuning(model: Any, tokens: int, outputs: int) -> dict[str, float]:
    """Tokens a second with so many (and so many that carry loss) in an optimiser step; ``limit``: the matmuls alone."""
    layers, found = Layers.of(model), peaks(model, tokens)
    matmul = layers.seconds(tokens, outputs, backward=True)
    memory = OF_A_STEP * model.num_parameters() / (found["memory_gbs"] * 1e9)
    own = {"model_gflops": layers.flops(tokens, outputs, backward=True) / matmul / 1e9}
    both = {"by_memory": tokens / memory, "by_both": tokens / (matmul + memory)}
    return found | own | both | {"limit": tokens / matmul}


def of_round(
    model: Any, rows: int, drawn: int, prompts: int, prompt_tokens: int, steps: int, tuned: int, outputs: int
) -> dict[str, float]:
    """Seconds that a round's matmuls need: ``limit`` at the rates of the model's own linear layers, ``at_peak`` at the
    best rate of any matmul. ``drawn``: sampled tokens; ``tuned``: tokens of all steps, ``outputs`` of them with loss.
    """
    layers = Layers.of(model)
    found = peaks(model, rows)
    parts = {
        "need_sample": (drawn / rows, (rows, rows, False)),
        "need_prefill": (1, (prompt_tokens, prompts, False)),
        "need_tune": (steps, (tuned // steps, outputs // steps, True)),
    }
    needs = {name: times * layers.seconds(*pass_) for name, (times, pass_) in parts.items()}
    flops = sum(times * layers.flops(*pass_) for times, pass_ in parts.values())
    peak = max(found["square_gflops"], found["layer_gflops"]) * 1e9
    total = sum(needs.values())
    return found | needs | {"model_gflops": flops / total / 1e9, "limit": total, "at_peak": flops / peak}


def survey() -> Iterator[dict[str, Any]]:
    """Why one matmul's rate is not another's: size, rows, weights in or out of the cache, threads."""
    from paired import real_model

    from raftune.models import compute_dtype, device, load_model

    where, dtype = device(), compute_dtype(device())
    model = load_model(real_model(), dtype)
    layers, threads = Layers.of(model), torch.get_num_threads()
    for count in dict.fromkeys((threads, 1)):
        torch.set_num_threads(count)
        with torch.inference_mode():
            yield {"threads": count, "memory_gbs": bandwidth(where) / 1e9}
            for size in (512, *SQUARES[where.type]):
                rates = [square_rate(size, one, where) / 1e9 for one in (dtype, torch.float32)]
                yield {"threads": count, "square": size, "gflops": rates[0], "float32": rates[1]}
            for rows in (1, 16, 64, 128, 192, 256, 512, 1024, 2048, 4096):
                warm, cold = (layer_rate(rows, 576, 1536, weights, dtype, where) / 1e9 for weights in (1, 60))
                model_rate = layers.flops(rows, rows) / layers.seconds(rows, rows) / 1e9
                line = {"threads": count, "rows": rows, "one_weight": warm, "sixty_weights": cold}
                yield line | {"model": model_rate}


if __name__ == "__main__":
    print(json.dumps({"machine": machine.name(), "about": machine.description()}, ensure_ascii=False))
    for line in survey():
        print(json.dumps({key: round(value, 1) for key, value in line.items()}), flush=True)
