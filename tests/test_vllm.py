"""vLLM as far as it can be tested without: recipes, and the client against a local server that speaks its protocol.

The server draws with a real (tiny) model from whatever folder it was told to load, so that weights that did not arrive
show as wrong answers. vLLM itself is in tests_vllm/, run by `make test-vllm`.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_model, prompts_of
from test_cli import call, work
from transformers import StopStringCriteria

from raftune import pick, table
from raftune.errors import UserError
from raftune.models import load_model, load_tokenizer
from raftune.recipe import parse, validated
from raftune.resident import resident, state_of
from raftune.sample.decode import Stop, Work, decode_shared
from raftune.sample.draw import Temper, uniforms
from raftune.sample.probe import prepare
from raftune.sample.served import VllmSampler
from raftune.sample.server import Server
from raftune.sample.text import TextSampler
from raftune.sampling import TextSampleConfig
from raftune.types import Prompt, Scored

__all__ = ["work"]
SHORT = {"model": "m", "prompts": "p.jsonl", "reward": "vader"}
PROMPTS = prompts_of("The film", "A long and tedious evening", "x")


class Vllm(ThreadingHTTPServer):
    """What `vllm serve FOLDER` answers, ``dev`` and ``lora`` being what it was allowed at its start."""

    daemon_threads = True

    def __init__(self, folder: Path, dev: bool = True, lora: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.dev, self.lora = str(folder), dev, lora
        self.asked: list[tuple[str, Any]] = []
        self.during: Callable[[], None] = lambda: None
        self.tokens = True
        self.chunked = True
        self.device, self.extension, self.logprobs_mode = "cuda", "", "raw_logprobs"
        self.lock = threading.Lock()
        self.live: tuple[Any, Any, Any] = (None, None, None)
        self.restart()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def handle_error(self, request: object, address: object) -> None:
        pass

    def restart(self) -> None:
        self.loaded, self.version, self.adapters = self.folder, "default", dict[str, str]()

    def answer(self, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        known = {"/v1/models": self.models, "/v1/completions": self.completions}
        if self.dev:
            known |= {"/weight_info": lambda _: (200, {"weight_version": self.version})}
            known |= {"/server_info?config_format=json": self.info}
            known |= {"/update_weight_version": self.mark, "/collective_rpc": self.rpc}
            known |= {path: lambda _: (200, {}) for path in ("/reset_prefix_cache", "/sleep", "/wake_up")}
        if self.lora:
            known |= {"/v1/load_lora_adapter": self.load, "/v1/unload_lora_adapter": self.unload}
        return known[path](body) if path in known else (404, {"detail": "Not Found"})

    def models(self, body: Any) -> tuple[int, Any]:
        cards = [{"id": self.folder, "root": self.folder, "parent": None, "max_model_len": 256}]
        cards += [{"id": name, "root": path, "parent": self.folder} for name, path in self.adapters.items()]
        return 200, {"object": "list", "data": cards}

    def info(self, body: Any) -> tuple[int, Any]:
        told: dict[str, Any] = {"model_config": {"logprobs_mode": self.logprobs_mode}}
        told["device_config"] = {"device": self.device}
        told["scheduler_config"] = {"enable_chunked_prefill": self.chunked}
        return 200, {"vllm_config": {**told, "parallel_config": {"worker_extension_cls": self.extension}}}

    def mark(self, body: Any) -> tuple[int, Any]:
        self.version = body["new_version"]
        return 200, {"success": True}

    def rpc(self, body: Any) -> tuple[int, Any]:
        assert body["method"] == ("reload_whole" if self.device == "cpu" else "reload_weights")
        folder = body["kwargs"]["weights_path"]
        if not Path(folder, "model.safetensors").exists():
            return 500, {"error": {"message": f"Cannot find any model weights with `{folder}`"}}
        self.loaded = folder
        return 200, {"results": [None]}

    def load(self, body: Any) -> tuple[int, Any]:
        self.adapters[body["lora_name"]] = body["lora_path"]
        return 200, "Success"

    def unload(self, body: Any) -> tuple[int, Any]:
        del self.adapters[body["lora_name"]]
        return 200, "Success"

    def completions(self, body: Any) -> tuple[int, Any]:
        self.during()
        with self.lock:
            policy = self.adapters.get(body["model"], self.loaded)
            if self.live[0] != state_of(policy):
                self.live = state_of(policy), load_model(policy, torch.float32), load_tokenizer(policy)
            _, model, tokenizer = self.live
            assert prepare(model, len(body["prompt"]) + body["max_tokens"])
            strings = StopStringCriteria(tokenizer, body["stop"]) if body["stop"] else None
            addresses = [(body["seed"] + index,) for index in range(body["n"])]
            work = Work([body["prompt"]], [0] * body["n"], uniforms(addresses, body["max_tokens"]))
            greedy = body["temperature"] == 0
            temper = Temper(body["temperature"] or 1.0, 1 if greedy else body["top_k"] or None, body["top_p"])
            drawn = decode_shared(model, work, temper, Stop(body["stop_token_ids"], strings))
        assert not (greedy and body["n"] > 1)  # as vLLM refuses it
        choices = [
            {
                "index": index,
                "text": "",
                "token_ids": list(one.token_ids) if self.tokens and body["return_token_ids"] else None,
                "logprobs": {"token_logprobs": list(one.logprobs)} if body["logprobs"] is not None else None,
                "finish_reason": "stop" if one.stopped else "length",
            }
            for index, one in enumerate(drawn)
        ]
        return 200, {"choices": choices[::-1]}


class Handler(BaseHTTPRequestHandler):
    server: Vllm

    def do_GET(self) -> None:
        self.reply(None)

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

    def reply(self, body: dict[str, Any] | None) -> None:
        self.server.asked.append((self.path, body))
        status, said = self.server.answer(self.path, body)
        content = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *said: object) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Vllm]]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    servers: list[Vllm] = []

    def start(*given: Any, **options: Any) -> Vllm:
        servers.append(Vllm(*given, **options))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights of the same shapes."""
    return build_model(tmp_path_factory.mktemp("other"), seed=7)


def sampler(server: Vllm, **options: Any) -> VllmSampler:
    return VllmSampler(Server(server.url), **{"max_new_tokens": 12, **options})


def same(server: Vllm, policy: Path, prompts: list[Prompt] = PROMPTS, **options: Any) -> None:
    """Greedy answers are those of our own sampler, as tokens, text and log-probabilities."""
    options = {"max_new_tokens": 12, "top_k": 1, **options}
    ours = TextSampler(**options).sample(policy, prompts, 2, (0,))
    theirs = VllmSampler(Server(server.url), **options).sample(policy, prompts, 2, (0,))
    assert [(c.prompt, c.index, c.output.text) for c in theirs] == [(c.prompt, c.index, c.output.text) for c in ours]
    for one, two in zip(theirs, ours, strict=True):
        assert one.output.token_ids == two.output.token_ids
        assert one.output.finish_reason == two.output.finish_reason
        assert one.output.token_logprobs == pytest.approx(two.output.token_logprobs, abs=1e-4)
        assert one.logprob == pytest.approx(two.logprob, abs=1e-3)


def test_a_server_draws_what_our_sampler_draws(tiny: Path, serve: Callable[..., Vllm]) -> None:
    server = serve(tiny)
    same(server, tiny)
    same(server, tiny, [Prompt("chat", ({"role": "user", "content": "Hello"},))])


def test_a_request_a_prompt_each_with_its_own_seed(tiny: Path, serve: Callable[..., Vllm]) -> None:
    server = serve(tiny)
    draw = sampler(server, temperature=0.7, top_k=50, top_p=0.9)
    found = draw.sample(tiny, PROMPTS, 4, (3, 1))
    asked = [body for path, body in server.asked if path == "/v1/completions"]
    assert len(asked) == 3
    assert len({body["seed"] for body in asked}) == 3
    assert all(0 <= body["seed"] < 2**62 for body in asked)
    wanted = {"n": 4, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.0, "logprobs": 0}
    assert all(body.items() >= wanted.items() for body in asked)
    assert [(c.prompt.id, c.index) for c in found] == [(p.id, i) for p in PROMPTS for i in range(4)]
    assert len({c.output.token_ids for c in found}) > 8

    def ids(prompts: list[Prompt], k: int, *address: object) -> list[tuple[int, ...]]:
        return [c.output.token_ids for c in draw.sample(tiny, prompts, k, address)]

    assert ids(PROMPTS[1:], 4, 3, 1) == [c.output.token_ids for c in found[4:]]  # whatever stands beside it
    assert ids(PROMPTS, 2, 3, 1) == [c.output.token_ids for c in found if c.index < 2]
    assert ids(PROMPTS, 4, 3, 2) != [c.output.token_ids for c in found]


def test_new_weights_arrive(tiny: Path, other: Path, serve: Callable[..., Vllm]) -> None:
    server = serve(tiny)
    same(server, tiny)
    same(server, other)
    assert server.loaded == str(other)
    server.asked.clear()
    same(server, other)
    assert "/collective_rpc" not in server.paths  # they are there
    same(server, tiny)
    assert server.loaded == str(tiny)


def test_an_adapter_is_loaded_and_the_one_before_let_go(tiny: Path, tmp_path: Path, serve: Callable[..., Vllm]) -> None:
    from raftune.tune.lora import Lora
    from raftune.tune.text import TextLearner

    drawn = TextSampler(max_new_tokens=8).sample(tiny, PROMPTS, 1, (0,))
    chosen = [Scored(one, 1.0) for one in drawn]
    first, second = (
        TextLearner(learning_rate=rate, epochs=3, lora=Lora(r=4, alpha=64)).tune(tiny, chosen, tmp_path / name, (0,))
        for name, rate in (("first", 1e-2), ("second", 3e-2))
    )
    server = serve(tiny)
    backend = Server(server.url)
    draw, ours = VllmSampler(backend, top_k=1, max_new_tokens=12), TextSampler(top_k=1, max_new_tokens=12)
    texts = []
    for policy in (tiny, first, second, tiny):
        found = draw.sample(policy, PROMPTS, 1, (0,))
        assert [c.output.text for c in found] == [c.output.text for c in ours.sample(policy, PROMPTS, 1, (0,))]
        texts.append([c.output.text for c in found])
        assert len(server.adapters) <= 1
    assert texts[0] == texts[3]
    assert texts[0] != texts[1] != texts[2]
    assert list(server.adapters.values()) == [str(second)]


def test_a_server_that_was_started_anew_is_given_the_weights_again(
    tiny: Path, other: Path, serve: Callable[..., Vllm]
) -> None:
    server = serve(tiny)
    draw = sampler(server, top_k=1)
    before = draw.sample(other, PROMPTS, 1, (0,))
    server.restart()
    assert draw.sample(other, PROMPTS, 1, (0,)) == before


def test_weights_that_change_under_a_shard_stop_it(tiny: Path, other: Path, serve: Callable[..., Vllm]) -> None:
    server = serve(tiny)
    server.during = lambda: server.mark({"new_version": "somebody else's"}) and None
    with pytest.raises(UserError, match=r"was given other weights while it answered; let one run at a time use it"):
        sampler(server).sample(other, PROMPTS, 1, (0,))


def test_a_server_of_its_own_device_sleeps_only_where_it_is_told(tiny: Path, serve: Callable[..., Vllm]) -> None:
    server = serve(tiny)
    draw = VllmSampler(Server(server.url, idle="sleep"), max_new_tokens=2)
    draw.sample(tiny, PROMPTS, 1, (0,))
    assert "/sleep" not in server.paths
    resident.free()
    resident.free()
    assert server.paths.count("/sleep") == 1
    draw.sample(tiny, PROMPTS, 1, (0,))
    assert server.paths.count("/wake_up") == 1
    sampler(server).sample(tiny, PROMPTS, 1, (0,))
    resident.free()
    assert server.paths.count("/sleep") == 2  # the one that was told; not the last


def said_by(draw: VllmSampler, policy: Path) -> str:
    with pytest.raises(UserError) as error:
        draw.sample(policy, PROMPTS[:1], 1, (0,))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_wrong_with_a_server_is_said_in_one_line(
    tiny: Path, other: Path, tmp_path: Path, model_of: Callable[..., Path], serve: Callable[..., Vllm]
) -> None:
    server = serve(tiny)
    shape = model_of("llama", hidden_size=64)
    assert f"serves {tiny}, not {shape} or a model of its shapes; start `vllm serve" in said_by(sampler(server), shape)
    assert "takes no new weights; start it with VLLM_SERVER_DEV_MODE=1" in said_by(
        sampler(serve(tiny, dev=False)), other
    )
    same(serve(tiny, dev=False), tiny)  # that is what it was started with
    server.tokens = False
    assert "answers without token ids or log-probabilities; is it vLLM?" in said_by(sampler(server), tiny)
    server.logprobs_mode = "processed_logprobs"
    assert "tells processed_logprobs; start it without --logprobs-mode" in said_by(sampler(server), other)
    hidden = serve(tiny)
    hidden.rpc = lambda body: (500, {"error": {"message": "Cannot find any model weights"}})  # type: ignore[method-assign]
    line = said_by(sampler(hidden), other)
    assert "Cannot find any model weights" in line
    assert line.endswith(f"does the server see the folder {other}?")
    assert hidden.version == "raftune is loading"  # and is loaded again the next time


def test_a_server_on_a_cpu_is_to_be_started_as_it_works_there(
    tiny: Path, other: Path, serve: Callable[..., Vllm]
) -> None:
    server = serve(tiny)
    server.device = "cpu"
    assert "start it with --worker-extension-cls raftune.sample.worker.Whole" in said_by(sampler(server), other)
    server.extension = "raftune.sample.worker.Whole"
    assert said_by(sampler(server), other).endswith("start it with --no-enable-chunked-prefill")
    server.chunked = False
    same(server, other)


def test_a_server_without_room_for_adapters(tiny: Path, tmp_path: Path, serve: Callable[..., Vllm]) -> None:
    from peft import LoraConfig, get_peft_model

    adapter = get_peft_model(load_model(tiny, torch.float32), LoraConfig(task_type="CAUSAL_LM", r=2))
    adapter.peft_config["default"].base_model_name_or_path = str(tiny)
    adapter.save_pretrained(tmp_path / "adapter")
    line = said_by(sampler(serve(tiny, lora=False)), tmp_path / "adapter")
    assert "/v1/load_lora_adapter says" in line
    assert "--enable-lora, --max-lora-rank and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1?" in line


def test_a_server_that_is_down(tiny: Path) -> None:
    line = said_by(VllmSampler(Server("http://127.0.0.1:9/v1/")), tiny)
    assert "http://127.0.0.1:9/v1: no answer after 2 tries: out of reach" in line
    assert "is `vllm serve` running there?" in line


def test_a_prompt_that_does_not_fit_is_named(tiny: Path, serve: Callable[..., Vllm]) -> None:
    line = said_by(sampler(serve(tiny), max_new_tokens=255), tiny)
    assert line.startswith("sample: prompt 'p0' has")
    assert "passes the model's 256" in line


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ({"url": "http://x:1"}, "sample.url: does nothing with backend: text; set backend: vllm"),
        ({"backend": "vllm", "url": "x:1"}, "sample.url: String should match pattern"),
        ({"vllm": {"idle": "stay"}}, "sample.vllm: does nothing with backend: text"),
        ({"backend": "vllm", "vllm": {"idel": "stay"}}, "sample.vllm.idel: no such key; did you mean 'idle'?"),
        ({"backend": "vllm", "vllm": {"engine": {"dtype": "x"}}}, "dtype is a key of its own; write sample.vllm.dtype"),
        ({"backend": "vllm", "vllm": {"engine": {"logprobs_mode": "x"}}}, "logprobs_mode is decided by the sampler"),
    ],
)
def test_faults_name_the_key_and_the_mend(sample: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        parse({**SHORT, "sample": sample})
    assert said in str(error.value)


def test_where_and_how_fast_may_change_in_a_running_run() -> None:
    def settings(**sample: Any) -> dict[str, Any]:
        found = parse({**SHORT, "sample": {"backend": "vllm", **sample}}).settings
        return {key: value for key, value in found.items() if value is not None}

    speed = {"gpu_memory_utilization": 0.3, "max_model_len": 512, "tensor_parallel_size": 2, "enforce_eager": True}
    assert settings() == settings(url="http://x:1") == settings(vllm={**speed, "idle": "stop"})
    assert settings(vllm={"dtype": "float32"}) != settings()
    assert settings(vllm={"engine": {"quantization": "fp8"}})["sample.vllm.engine.quantization"] == "fp8"
    text = parse(SHORT).settings
    assert not any("vllm" in key or "url" in key for key in text)  # runs of before are still the same runs


def test_a_missing_vllm_is_said_with_the_mend(tiny: Path, work: Path) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.fail("run these without vllm; tests_vllm/ are for it")
    result = call("run", work / "recipe.yaml", "--out", work / "run", "--set", "sample.backend=vllm", "--dry-run")
    assert result.exit_code == 2
    assert "sample.backend: vllm needs the package vllm: pip install vllm" in result.output


def test_one_server_for_all_samplers_of_a_recipe(tiny: Path) -> None:
    config = validated(TextSampleConfig, {"backend": "vllm", "url": "http://x:1"}, "sample")
    one, two = pick.sampler(config), pick.sampler(config.model_copy(update={"temperature": 0.5}))
    assert isinstance(one, VllmSampler)
    assert isinstance(two, VllmSampler)
    assert one.backend is two.backend
    assert one != two


def test_the_stage_and_a_run_by_url(tiny: Path, work: Path, serve: Callable[..., Vllm]) -> None:
    """`raftune sample`, then two rounds with held-out evaluation and β, all through the server."""
    server = serve(tiny)
    where = ("--backend", "vllm", "--url", server.url)
    asked = ("--policy", tiny, "--prompts", work / "prompts.jsonl", "--k", 2, "--max-new-tokens", 8)
    assert call("sample", *asked, *where, "--out", work / "c.parquet").exit_code == 0
    assert len(table.read_candidates(work / "c.parquet", table.TextCodec())) == 48
    changes = ("sample.backend=vllm", f"sample.url={server.url}", "kl_coefficient=0.1", "tune.learning_rate=3e-3")
    flags = [part for change in changes for part in ("--set", change)]
    result = call("run", work / "recipe.yaml", "--out", work / "run", *flags)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1, 2]
    # what the server says of its draws is what the policy of that round finds, or KL to the initial one would be off
    assert abs(rows[1]["sample/kl"]) < 1e-3  # round 1 draws from the initial policy
    assert rows[2]["sample/kl"] > 0.05
    reloads = [body["kwargs"]["weights_path"] for path, body in server.asked if path == "/collective_rpc"]
    assert [Path(path).parts[-2:] for path in reloads[1:]] == [("0001", "policy"), ("0002", "policy")]


def test_text_is_cut_where_a_stop_string_begins(tiny: Path, serve: Callable[..., Vllm]) -> None:
    draw = sampler(serve(tiny), max_new_tokens=30)
    whole = draw.sample(tiny, PROMPTS, 4, (0,))
    stop = next(a + b for c in whole for a, b in pairwise(c.output.text) if (a + b).isascii() and (a + b).isalnum())
    found = replace(draw, stop=(stop,)).sample(tiny, PROMPTS, 4, (0,))
    assert any(stop in c.output.text for c in whole)
    for before, after in zip(whole, found, strict=True):
        assert after.output.text == before.output.text.split(stop)[0]
        if stop in before.output.text:
            assert after.output.finish_reason == "stop"
            assert load_tokenizer(tiny).decode(after.output.token_ids).endswith(stop)  # kept there
