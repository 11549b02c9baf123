"""Endpoints, against a real server on this machine that fails in every way a server fails."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from raftune import interrupt
from raftune.endpoint import Answer, Endpoint, Price, Request
from raftune.errors import Interrupted, UserError
from raftune.sample.endpoint import EndpointSampler
from raftune.types import Prompt

Reply = tuple[int, dict[str, str], bytes]
SOON = {"retry-after-ms": "5"}  # the server says when to come back: no long waits here


class Server(ThreadingHTTPServer):
    """Answers the n-th request (from 0) with ``script(n, body)``; None stands for a good answer."""

    daemon_threads = True

    def __init__(self, script: Callable[[int, dict[str, Any]], Reply | None] = lambda n, body: None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.times: list[float] = []
        self.lock = threading.Lock()

    def handle_error(self, request: object, address: object) -> None:
        pass  # a client that has gone away is what some tests are about

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.keys.append(self.headers["Authorization"])
            self.server.times.append(time.monotonic())
        status, headers, content = self.server.script(number, body) or good(body)
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *said: object) -> None:
        pass


def good(body: dict[str, Any], *texts: str, n: int | None = None) -> Reply:
    said = texts or tuple(f"{_asked(body)} {body.get('seed')} {place}" for place in range(n or body.get("n", 1)))
    choices = [
        {"index": place, "finish_reason": "stop", "text": text, "message": {"role": "assistant", "content": text}}
        for place, text in enumerate(said)
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 2 * len(said), "total_tokens": 10 + 2 * len(said)}
    return 200, {}, json.dumps({"id": "x", "object": "y", "choices": choices, "usage": usage}).encode()


def fault(status: int, message: str, **headers: str) -> Reply:
    return status, headers, json.dumps({"error": {"message": message, "type": "t", "code": None}}).encode()


def _asked(body: dict[str, Any]) -> str:
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    servers: list[Server] = []

    def start(*script: Any) -> Server:
        servers.append(Server(*script))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def chat(text: str = "hello", **options: Any) -> Request:
    return Request(({"role": "user", "content": text},), 16, **options)


def test_chats_and_texts_go_out_as_they_are(serve: Callable[..., Server]) -> None:
    server = serve()
    endpoint = Endpoint("m", server.url, price=Price(1.0, 10.0))
    kept: dict[int, Answer] = {}
    requests = [chat("one", seed=5, stop=("\n",)), Request("two", 8, temperature=0.5, seed=6)]
    answers = endpoint.ask(requests, kept.__setitem__)
    assert [answer.texts for answer in answers] == [("one 5 0",), ("two 6 0",)]
    assert kept == dict(enumerate(answers))
    by_seed = sorted(server.bodies, key=lambda body: body["seed"])
    messages = [{"role": "user", "content": "one"}]
    first = {"model": "m", "messages": messages, "max_tokens": 16, "temperature": 1.0, "seed": 5, "stop": ["\n"]}
    assert by_seed == [first, {"model": "m", "prompt": "two", "max_tokens": 8, "temperature": 0.5, "seed": 6}]
    assert (answers[0].prompt_tokens, answers[0].completion_tokens) == (10, 2)
    assert endpoint.cost(10, 2) == pytest.approx((10 * 1 + 2 * 10) / 1e6)
    assert Endpoint("m", server.url).cost(10, 2) is None


@pytest.mark.parametrize(
    "broken",
    [
        lambda body: fault(500, "broken", **SOON),
        lambda body: fault(429, "busy", **SOON),
        lambda body: (200, {}, b'{"choices": [{"mess'),
        lambda body: (200, {"content-type": "text/html"}, b"<html>"),
        lambda body: (200, {}, b'{"error": {"message": "upstream"}}'),
        lambda body: good(body, ""),
        lambda body: good(body, "  \n"),
    ],
    ids=["500", "429", "cut JSON", "no JSON", "no choices", "empty", "blank"],
)
def test_faults_that_pass_are_tried_again(broken: Any, serve: Callable[..., Server]) -> None:
    server = serve(lambda n, body: broken(body) if n == 0 else None)
    [answer] = Endpoint("m", server.url, retries=1).ask([chat()])
    assert answer.texts[0].startswith("hello")
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda body: fault(503, "over\nloaded", **SOON), "503 over loaded"),
        (lambda body: fault(429, "slow down", **SOON), "429 slow down"),
        (lambda body: (200, {}, b"nonsense"), "not a completion: 'nonsense'"),
    ],
)
def test_faults_that_stay_end_in_one_line(broken: Any, said: str, serve: Callable[..., Server]) -> None:
    server = serve(lambda n, body: broken(body))
    with pytest.raises(UserError) as error:
        Endpoint("m", server.url, retries=1, concurrency=1).ask([chat(), chat()])
    line = str(error.value)
    assert f"endpoint m at {server.url}: no answer after 2 tries: {said}" in line
    assert "what was collected is kept, the same command resumes" in line
    assert "\n" not in line
    assert len(server.bodies) == 2  # the second request was never sent


def test_retry_after_is_heeded(serve: Callable[..., Server]) -> None:
    server = serve(lambda n, body: fault(429, "busy", **{"Retry-After": "1"}) if n == 0 else None)
    Endpoint("m", server.url, retries=1).ask([chat()])
    assert server.times[1] - server.times[0] >= 1.0


def test_a_server_that_is_down_or_slow(serve: Callable[..., Server]) -> None:
    server = serve()
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="no answer after 2 tries: out of reach"):
        Endpoint("m", server.url, retries=1).ask([chat()])
    slow = serve(lambda n, body: time.sleep(0.6) if n == 0 else None)
    with pytest.raises(UserError, match=r"no answer after 1 try: no answer within 0\.2 s"):
        Endpoint("m", slow.url, retries=0, timeout=0.2).ask([chat()])
    [answer] = Endpoint("m", slow.url, retries=0, timeout=0.2).ask([chat()])
    assert answer.texts


def test_missing_choices_are_asked_for_again(serve: Callable[..., Server]) -> None:
    """Servers that ignore n, or bring one empty choice of three; each call draws from another seed."""
    one_each = serve(lambda n, body: good(body, n=1))
    [answer] = Endpoint("m", one_each.url, retries=0).ask([chat(n=3, seed=7)])
    assert answer.texts == ("hello 7 0", "hello 8 0", "hello 9 0")
    assert [body.get("n") for body in one_each.bodies] == [3, 2, None]
    assert (answer.prompt_tokens, answer.completion_tokens) == (30, 6)
    holed = serve(lambda n, body: good(body, "a", "", "c") if n == 0 else None)
    [answer] = Endpoint("m", holed.url, retries=0).ask([chat(n=3, seed=7)])
    assert answer.texts == ("a", "c", "hello 8 0")
    generous = serve(lambda n, body: good(body, "a", "b", "c"))
    assert Endpoint("m", generous.url).ask([chat(n=2)])[0].texts == ("a", "b")


def test_an_answer_that_stays_empty_is_told_as_such(serve: Callable[..., Server]) -> None:
    server = serve(lambda n, body: good(body, ""))
    [answer] = Endpoint("m", server.url, retries=2).ask([chat()])
    assert answer.texts == ("",)
    assert len(server.bodies) == 3
    assert answer.prompt_tokens == 30  # they are paid for


def test_keys_come_from_the_environment_and_are_never_shown(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server = serve(lambda n, body: fault(401, "wrong key sk-secret"))
    with pytest.raises(UserError) as error:
        Endpoint("m", server.url, key_env="MY_KEY").ask([chat()])
    assert "no answer after 1 try: the key in MY_KEY is refused, 401 wrong key ***" in str(error.value)
    assert "sk-secret" not in str(error.value)
    assert server.keys == ["Bearer sk-secret"]  # not tried again
    with pytest.raises(UserError, match="no key in the environment variable NO_KEY; set it"):
        Endpoint("m", key_env="NO_KEY").ask([chat()])
    open_to_all = serve()
    assert Endpoint("m", open_to_all.url, key_env="NO_KEY").ask([chat()])


def test_no_more_at_once_and_a_minute_than_allowed(serve: Callable[..., Server]) -> None:
    busy = {"now": 0, "most": 0}
    lock = threading.Lock()

    def slow(n: int, body: dict[str, Any]) -> None:
        with lock:
            busy["now"] += 1
            busy["most"] = max(busy.values())
        time.sleep(0.05)
        with lock:
            busy["now"] -= 1

    server = serve(slow)
    Endpoint("m", server.url, concurrency=3).ask([chat()] * 9)
    assert busy["most"] == 3
    paced = serve()
    Endpoint("m", paced.url, requests_per_minute=600).ask([chat()] * 4)
    assert paced.times[-1] - paced.times[0] >= 0.2  # 0.3 but for what the first one took to arrive


def sampler(server: Server, folder: Path, **options: Any) -> EndpointSampler:
    endpoint = Endpoint("m", server.url, concurrency=1, retries=0, price=Price(1.0, 10.0))
    return EndpointSampler(endpoint, folder=folder, source="gpt", **options)


PROMPTS = [Prompt("a", "A"), Prompt("b", ({"role": "user", "content": "B"},))]


def test_what_was_paid_for_is_not_asked_again(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(lambda n, body: fault(500, "broken") if n == 2 else None)
    with pytest.raises(UserError, match="500 broken"):
        sampler(server, tmp_path).sample("policy", PROMPTS, 2, (0, 1))
    journal = tmp_path / "gpt.jsonl"
    assert len(journal.read_text().splitlines()) == 2
    with journal.open("a") as torn:
        torn.write('{"key": "half a li')  # killed while it wrote
    again = sampler(server, tmp_path).sample("policy", PROMPTS, 2, (0, 1))
    assert len(server.bodies) == 3 + 2
    assert [(one.prompt.id, one.index, one.source) for one in again] == [
        *(("a", 0, "gpt"), ("a", 1, "gpt"), ("b", 0, "gpt"), ("b", 1, "gpt")),
    ]
    assert all(one.output.token_ids is None and one.logprob is None for one in again)
    undisturbed = sampler(serve(), tmp_path / "other").sample("policy", PROMPTS, 2, (0, 1))
    assert again == undisturbed
    assert sampler(server, tmp_path).sample("policy", PROMPTS, 2, (0, 1)) == again
    assert len(server.bodies) == 5
    assert len({body["seed"] for body in server.bodies}) == 4  # every candidate its own, every try the same
    assert sampler(server, tmp_path).sample("policy", PROMPTS, 2, (0, 2)) != again  # another round
    assert len(server.bodies) == 9
    assert sampler(server, tmp_path).figures((0, 1)) == pytest.approx(
        {"empty": 0, "prompt_tokens": 40, "completion_tokens": 8, "cost": 4 * (10 + 20) / 1e6}
    )


def test_an_empty_answer_is_no_candidate(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(lambda n, body: good(body, "") if n == 1 else None)
    drawn = sampler(server, tmp_path, chat=True).sample("policy", PROMPTS[:1], 3, (0, 1))
    assert [one.index for one in drawn] == [0, 2]
    assert sampler(server, tmp_path).figures((0, 1))["empty"] == 1
    assert all("messages" in body for body in server.bodies)


def test_a_signal_stops_between_two_requests(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    server = serve(lambda n, body: os.kill(os.getpid(), signal.SIGTERM) if n == 1 else None)
    with interrupt.handled(), pytest.raises(Interrupted):
        sampler(server, tmp_path).sample("policy", PROMPTS, 2, (0, 1))
    assert len(server.bodies) == 2
    assert len((tmp_path / "gpt.jsonl").read_text().splitlines()) == 2


def test_half_a_surrogate_pair_in_an_answer_is_kept_as_a_question_mark(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    """It was paid for; what cannot be written as UTF-8 would end every session at the same answer."""
    server = serve(lambda n, body: good(body, "half \ud800 pair"))
    drawn = sampler(server, tmp_path, chat=True).sample("policy", PROMPTS[:1], 1, (0, 1))
    assert [one.output.text for one in drawn] == ["half ? pair"]
    assert len((tmp_path / "gpt.jsonl").read_text().splitlines()) == 1
