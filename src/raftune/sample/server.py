"""A ``vllm serve`` by its URL: it draws, and is told of new weights, through its public HTTP interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..endpoint import Endpoint
from ..errors import UserError
from ..resident import resident
from .decode import Drawn
from .served import Job
from .weights import Weights, absolute
from .worker import EXTENSION

if TYPE_CHECKING:
    from openai import AsyncOpenAI

DEV = "VLLM_SERVER_DEV_MODE=1"
MEND = "is `vllm serve` running there? what was sampled is kept, the same command resumes"
LOADING = "raftune is loading"


class Server:
    """A server, and which weights answer there.

    Whole weights are read by the server itself, from the policy's folder, through ``/collective_rpc``; they are marked
    by ``/update_weight_version``, so that a server that was started anew, or given other weights by somebody else, is
    noticed before and after every shard. Both need ``VLLM_SERVER_DEV_MODE=1``. Adapters are loaded through
    ``/v1/load_lora_adapter``, under a name that changes with their files.
    """

    def __init__(self, url: str, idle: str | None = None) -> None:
        self.root = url.rstrip("/").removesuffix("/v1")
        self.idle = idle
        self.endpoint = Endpoint("vllm", f"{self.root}/v1", concurrency=256, retries=3, timeout=3600.0, mend=MEND)
        self._expected: str | None = None  # the version that answers should have; None: the server does not tell
        self._model = ""  # the name under which the weights are asked for
        self._adapter = ""  # the one that was loaded last
        self._asleep = False

    def ready(self, weights: Weights) -> int | None:
        """See :class:`raftune.sample.served.Backend`."""
        if self.idle == "sleep":
            resident.claim(self, self._sleep)
        if self._asleep:
            self._send("/wake_up", {}, f"it needs {DEV}")
            self._asleep = False
        cards = json.loads(self._send("/v1/models"))["data"]
        base = next(card for card in cards if not card.get("parent"))
        if not weights.fit_into(base["root"]):
            raise UserError(
                f"sample.url: {self.root} serves {base['root']}, not {weights.base} or a model of its shapes; start "
                f"`vllm serve {weights.base}` (folders have the same path there as here)"
            )
        self._settle(weights, base["root"])
        self._model = base["id"]
        if weights.adapter is not None:
            self._model = f"raftune-{weights.adapter_version}"
            if all(card["id"] != self._model for card in cards):
                self._load_adapter(weights.adapter)
        return base.get("max_model_len")

    def draw(self, job: Job, advance: Callable[[int], None]) -> list[list[Drawn]]:
        """See :class:`raftune.sample.served.Backend`."""
        work = [partial(self._complete, job=job, row=row) for row in range(len(job.prompt_ids))]
        drawn = self.endpoint.each(work, lambda row, found: advance(1))
        if self._version() != self._expected:
            raise UserError(
                f"sample.url: {self.root} was given other weights while it answered; let one run at a time use it. "
                "The same command samples this shard again"
            )
        return drawn

    async def _complete(self, client: AsyncOpenAI, job: Job, row: int) -> list[Drawn]:
        body = job.parameters(row) | {"model": self._model, "prompt": list(job.prompt_ids[row])}
        patient = client.with_options(max_retries=self.endpoint.retries)
        with self.endpoint.telling():
            said = await patient.post("/completions", cast_to=str, body=body | {"return_token_ids": True})
        choices = json.loads(said)["choices"]
        if len(choices) != body["n"]:
            raise UserError(f"sample.url: {self.root} gave {len(choices)} of {body['n']} answers; is it vLLM?")
        return [self._drawn(choice) for choice in sorted(choices, key=lambda choice: choice["index"])]

    def _drawn(self, choice: Mapping[str, Any]) -> Drawn:
        ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
        if ids is None or logprobs is None or len(ids) != len(logprobs):
            raise UserError(f"sample.url: {self.root} answers without token ids or log-probabilities; is it vLLM?")
        return Drawn(tuple(ids), tuple(map(float, logprobs)), choice["finish_reason"] == "stop")

    def _version(self) -> str | None:
        """The mark of the weights that answer; None where the server does not tell, and cannot be given others."""
        said = self._send("/weight_info", absent="")
        return json.loads(said)["weight_version"] if said else None

    def _settle(self, weights: Weights, root: str) -> None:
        """Let the server have this base, if it has another."""
        self._expected = self._version()
        if self._expected is None and absolute(root) == weights.base:
            return  # what it was started with
        if self._expected is None:
            raise UserError(f"sample.url: {self.root} takes no new weights; start it with {DEV}, or tune an adapter")
        if self._expected != weights.base_version:
            method = self._reloading()
            self._send("/update_weight_version", {"new_version": LOADING})
            order = {"method": method, "kwargs": {"weights_path": weights.base}}
            self._send("/collective_rpc", order, f"does the server see the folder {weights.base}?")
            self._send("/reset_prefix_cache", {})
            self._send("/update_weight_version", {"new_version": weights.base_version})
            self._expected = weights.base_version

    def _reloading(self) -> str:
        """What the server's workers call reading new weights, all of them."""
        told = json.loads(self._send("/server_info?config_format=json"))["vllm_config"]
        if (mode := told["model_config"]["logprobs_mode"]) != "raw_logprobs":
            raise UserError(f"sample.url: {self.root} tells {mode}; start it without --logprobs-mode")
        if told["device_config"]["device"] != "cpu":
            return "reload_weights"
        if told["parallel_config"]["worker_extension_cls"] != EXTENSION:
            raise UserError(
                f"sample.url: {self.root} is on a CPU, where vLLM leaves a tied output layer as it was; start it with "
                f"--worker-extension-cls {EXTENSION} (raftune is to be installed there), or tune an adapter"
            )
        if told["scheduler_config"]["enable_chunked_prefill"]:
            raise UserError(
                f"sample.url: {self.root} is on a CPU, where vLLM fails at a seeded prompt that is read in two steps; "
                "start it with --no-enable-chunked-prefill"
            )
        return "reload_whole"

    def _load_adapter(self, folder: str) -> None:
        mend = (
            f"does the server see the folder {folder}, and was it started with --enable-lora, --max-lora-rank and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1?"
        )
        self._send("/v1/load_lora_adapter", {"lora_name": self._model, "lora_path": folder}, mend)
        if self._adapter:
            self._send("/v1/unload_lora_adapter", {"lora_name": self._adapter}, absent="")
        self._adapter = self._model

    def _sleep(self) -> None:
        if not self._asleep:
            self._send("/sleep", {}, f"it needs --enable-sleep-mode and {DEV}")
            self._asleep = True

    def _send(self, path: str, body: object = None, mend: str = MEND, absent: str | None = None) -> str:
        """What the server says to this, or ``absent`` where it does not know the path."""
        import openai

        async def send(client: AsyncOpenAI) -> str:
            patient = client.with_options(max_retries=1)
            url = f"{self.root}{path}"
            with self.endpoint.telling():
                try:
                    return await (
                        patient.get(url, cast_to=str) if body is None else patient.post(url, cast_to=str, body=body)
                    )
                except openai.APIStatusError as error:
                    if error.status_code == 404 and absent is not None:
                        return absent
                    said = " ".join(error.message.split())[:300]
                    raise UserError(f"sample.url: {self.root}{path} says {said}; {mend}") from None

        return self.endpoint.each([send], lambda index, said: None)[0]


_servers: dict[tuple[str, str | None], Server] = {}


def server(url: str, idle: str | None = None) -> Server:
    """The server at this place: samplers of one recipe share what is known of it."""
    return _servers.setdefault((url, idle), Server(url, idle))
