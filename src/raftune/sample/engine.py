"""vLLM's engine inside this process: started once, given new weights, put to sleep while another model is at work."""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .. import interrupt
from ..errors import UserError
from ..models import compute_dtype, device
from ..resident import resident
from .decode import Drawn
from .served import Job
from .text import CACHE_SHARE, memory_of
from .weights import Weights
from .worker import EXTENSION

log = logging.getLogger("raftune")
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, that vLLM makes room for


@dataclass(frozen=True)
class EngineOptions:
    """See :class:`raftune.serving.VllmConfig`."""

    dtype: str | None = None
    gpu_memory_utilization: float = 0.8
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    enforce_eager: bool | None = None
    idle: Literal["sleep", "stay", "stop"] | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def when_idle(self) -> str:
        """On a CPU vLLM cannot sleep, and starting takes as long as a round: it stays, unless told to stop."""
        if device().type == "cpu" and self.idle == "sleep":
            raise UserError("sample.vllm.idle: on a CPU vLLM cannot sleep; use stay or stop")
        return self.idle or ("stay" if device().type == "cpu" else "sleep")

    @property
    def room(self) -> int:
        """The rank of adapters that the recipe itself makes room for; 0: none."""
        return int(self.engine.get("max_lora_rank", 16 if self.engine.get("enable_lora") else 0))

    def arguments(self, weights: Weights, rank: int) -> dict[str, Any]:
        """Of ``vllm.LLM``, with room for adapters of this rank (0: none)."""
        lora = {"enable_lora": True, "max_lora_rank": next(r for r in RANKS if r >= rank)} if rank else {}
        if device().type == "cpu" and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            cache = {"kv_cache_memory_bytes": int(memory_of(device()) * CACHE_SHARE["cpu"])}
        else:
            cache = {"gpu_memory_utilization": self.gpu_memory_utilization}
        return {
            "model": weights.base,
            "dtype": self.dtype or str(compute_dtype(device())).removeprefix("torch."),
            "max_model_len": self.max_model_len,
            "tensor_parallel_size": self.tensor_parallel_size,
            "enforce_eager": device().type == "cpu" if self.enforce_eager is None else self.enforce_eager,
            "enable_sleep_mode": self.when_idle == "sleep",
            "logprobs_mode": "raw_logprobs",
            "generation_config": "vllm",
            "use_tqdm_on_load": False,
            # On a CPU 0.32 fails where a prompt that has a seed is read in two steps
            **({"worker_extension_cls": EXTENSION, "enable_chunked_prefill": False} if device().type == "cpu" else {}),
            **cache,
            **self.engine,
            **lora,
        }


class Engine:
    """One engine, and what it knows. Its weights are those of the last :meth:`ready`; whoever needs the memory (see
    :meth:`raftune.models.Resident.claim`) sends it to sleep, or away."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self._llm: Any = None
        self._model = ""  # what it was started with
        self._rank = 0
        self._base_version = ""
        self._adapters: dict[str, int] = {}  # version → vLLM's number for it
        self._adapter: Any = None
        self._asleep = False
        self._watchdog: subprocess.Popen[bytes] | None = None

    def ready(self, weights: Weights) -> int | None:
        """See :class:`raftune.sample.served.Backend`. Starts the engine, or one that fits, if there is none."""
        resident.claim(self, self._leave)
        if weights.rank > RANKS[-1]:
            raise UserError(f"sample: {weights.adapter} has rank {weights.rank}; vLLM takes at most {RANKS[-1]}")
        if self._llm is not None and (weights.rank > self._rank or not weights.fit_into(self._model)):
            self.stop()
        if self._llm is None:
            self._llm = self._start(weights)
        elif self._asleep:
            self._llm.wake_up()
            self._asleep = False
        if self._base_version != weights.base_version:
            self._reload(weights)
        self._adapter = self._lora(weights)
        return self._llm.model_config.max_model_len

    def draw(self, job: Job, advance: Callable[[int], None]) -> list[list[Drawn]]:
        """See :class:`raftune.sample.served.Backend`.

        All requests are there before the first step, and no cache is left of earlier ones: the same work is cut into
        the same batches every time, so the same machine rounds the same way.
        """
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

        rows = range(len(job.prompt_ids))
        parameters = [SamplingParams(**job.parameters(row), detokenize=bool(job.stop)) for row in rows]
        prompts = [{"prompt_token_ids": list(ids)} for ids in job.prompt_ids]
        try:
            self._llm.reset_prefix_cache()
            self._llm.sleep(level=0)  # requests are taken, and wait
            self._llm.enqueue(prompts, parameters, lora_request=self._adapter, use_tqdm=False)
            self._llm.wake_up(tags=["scheduling"])
            outputs = self._llm.wait_for_completion(use_tqdm=False)
        except BaseException:
            self.stop()  # whatever is left in it is not asked for again
            interrupt.check()  # Ctrl-C reaches its processes, too
            raise
        advance(len(outputs))
        return [[_drawn(one) for one in output.outputs] for output in outputs]

    @property
    def stopped(self) -> bool:
        """Is it not in memory at all?"""
        return self._llm is None

    def stop(self) -> None:
        """End its processes; the next :meth:`ready` starts anew."""
        llm, self._llm, self._adapter, self._asleep = self._llm, None, None, False
        self._adapters.clear()
        if llm is not None:
            llm.llm_engine.engine_core.shutdown(timeout=30)
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.communicate()  # and its pipe is closed
            self._watchdog = None

    def _leave(self) -> None:
        if self._llm is None or self._asleep:
            return
        match self.options.when_idle:
            case "sleep":
                self._llm.sleep(level=1)
                self._asleep = True
            case "stop":
                self.stop()

    def _start(self, weights: Weights) -> Any:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # at WARNING a line for every weight it casts
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # torch's threads do not survive a fork
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        rank = max(weights.rank, self.options.room)
        log.info("vllm: starting the engine%s", f" with room for adapters of rank {rank}" if rank else "")
        before = multiprocessing.active_children()
        try:
            llm = LLM(**self.options.arguments(weights, rank))
        except (ValueError, RuntimeError, OSError, TypeError) as error:
            interrupt.check()
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"sample.backend: vllm does not start with {weights.base}: {line}") from error
        self._watchdog = _watch([str(one.pid) for one in multiprocessing.active_children() if one not in before])
        atexit.register(self.stop)
        self._model, self._rank, self._base_version = weights.base, rank, weights.base_version
        return llm

    def _reload(self, weights: Weights) -> None:
        method = "reload_whole" if device().type == "cpu" else "reload_weights"
        self._llm.collective_rpc(method, kwargs={"weights_path": weights.base})
        self._model, self._base_version = weights.base, weights.base_version

    def _lora(self, weights: Weights) -> Any:
        if weights.adapter is None:
            return None
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        number = self._adapters.setdefault(weights.adapter_version, len(self._adapters) + 1)
        return LoRARequest(weights.adapter_version, number, weights.adapter)


def _watch(processes: list[str]) -> subprocess.Popen[bytes]:
    """Ends these when this process is gone, however it went (SIGKILL): vLLM's engine would wait for it forever, with
    all its memory. The pipe closes with this process."""
    script = 'cat > /dev/null; kill "$@"; sleep 10; kill -9 "$@"'
    command = ["sh", "-c", script, "watchdog", *processes]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


def _drawn(output: Any) -> Drawn:
    ids = tuple(output.token_ids)
    logprobs = tuple(float(step[token].logprob) for token, step in zip(ids, output.logprobs, strict=True))
    return Drawn(ids, logprobs, output.finish_reason == "stop")


_engines: dict[str, Engine] = {}


def engine(options: EngineOptions) -> Engine:
    """The engine of this process for these options: samplers of one recipe share it."""
    key = json.dumps(vars(options), sort_keys=True, default=str)
    return _engines.setdefault(key, Engine(options))
