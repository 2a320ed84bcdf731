"""A server on a port, asked by a real client: the protocol, the dial, the door, and answers as replay gives them."""

import asyncio
import json
import socket
import threading
from contextlib import suppress
from io import BytesIO

import httpx
import numpy as np
import pytest
from exporting import COSTS as EXPORT_COSTS
from exporting import digits, exported
from listening import listening, read, sent
from PIL import Image
from replaying import POLICIES, ReplayEngine, policies, rows
from small_bert import CLASSES as KINDS
from small_bert import small_bundle, small_preparation, small_texts

from eenet import AdaptiveModel, CostTable, Dial, ExitTable, replay
from eenet.running import open_export
from eenet.schedulers import GeometricScheduler
from eenet.serving.door import Limits
from eenet.serving.served import Served

COUNT = 96
COSTS = CostTable((1.0, 2.0, 3.0, 4.0), "ms")
LOGITS = (1.5 * np.random.default_rng(0).standard_normal((COUNT, 4, 6)).cumsum(axis=1)).astype(np.float32)
TABLE = ExitTable(logits=LOGITS, labels=LOGITS[:, -1].argmax(axis=1), costs=COSTS)
ROWS, IDS = rows(COUNT), np.arange(COUNT)
PICTURES = (255 * digits().images[:20].numpy()).round().astype(np.uint8)
INFER = "/v2/models/m/infer"


class Failing(ReplayEngine):
    """Fails where a row is there that it cannot run."""

    def stage(self, index: int, state: np.ndarray) -> np.ndarray:
        if index == 1 and (state[:, 0] == COUNT - 1).any():
            raise ZeroDivisionError("a row that cannot be run")
        return state


class Waiting(ReplayEngine):
    """Waits before every stage until it is let through."""

    gate = threading.Event()

    def stage(self, index: int, state: np.ndarray) -> np.ndarray:
        assert self.gate.wait(20)
        return state


@pytest.fixture(scope="module")
def dial() -> Dial:
    return GeometricScheduler().sweep(TABLE)


def replayed(policy, dial=None, engine=None) -> Served:
    return Served(name="m", model=AdaptiveModel(engine or ReplayEngine(LOGITS), policy, COSTS, dial=dial))


@pytest.fixture(scope="module")
def replaying_server(dial):
    with listening(replayed(dial.at(2.5), dial), queue_limit=200) as (url, service):
        yield url, service


@pytest.fixture
def client(replaying_server):
    with httpx.Client(base_url=replaying_server[0]) as client:
        yield client


@pytest.fixture(scope="module")
def pictures():
    opened = open_export(exported("onnxruntime").path)
    model = AdaptiveModel(opened.engine, opened.policy, opened.costs, dial=opened.dial)
    named = {"classes": opened.manifest.classes, "preparation": opened.manifest.preparation}
    with listening(Served(name="digits", model=model, **named)) as (url, _), httpx.Client(base_url=url) as client:
        yield client


def same_as(found, trace, part=slice(None)) -> None:
    """Assert that answers are those of replay, to the bit."""
    assert found["exit"].tolist() == trace.exit_index[part].tolist()
    assert found["label"].tolist() == trace.log_probs[part].argmax(axis=1).tolist()
    np.testing.assert_array_equal(found["probabilities"], np.exp(trace.log_probs[part]))
    assert found["cost"].tolist() == [COSTS.cumulative[k] for k in found["exit"]]
    np.testing.assert_allclose(found["score"], found["probabilities"].max(axis=1))


async def asked_at_once(url: str, requests: list[dict]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client:
        return await asyncio.gather(*(client.post(INFER, **one) for one in requests))


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_answers_are_those_of_replay_however_many_ask(name):
    policy = policies(LOGITS)[name]
    trace = replay(policy, TABLE)
    parts = [slice(first, first + size) for first, size in zip(range(0, COUNT, 4), [1, 4, 2, 4] * 6, strict=True)]
    requests = [
        sent({"row": ROWS[part]}, parameters={"sample_id": int(IDS[part][0])}, binary=k % 2 == 0)
        for k, part in enumerate(parts)
    ]
    with listening(replayed(policy), max_batch=8) as (url, _):
        answers = asyncio.run(asked_at_once(url, requests))
    for part, answer in zip(parts, answers, strict=True):
        same_as(read(answer), trace, part)


def test_a_request_may_have_a_budget_an_exit_and_names_of_its_own(client, dial):
    ids = {"sample_id": 0}
    for budget in (1.5, "3.5ms", "50%"):
        found = read(client.post(INFER, **sent({"row": ROWS}, parameters={"budget": budget, **ids})))
        same_as(found, replay(dial.at(budget), TABLE))
    capped = read(client.post(INFER, **sent({"row": ROWS}, parameters={"max_exit": 1, **ids}, outputs=["exit"])))
    assert (
        list(capped) == ["exit"]
        and capped["exit"].tolist() == np.minimum(replay(dial.at(2.5), TABLE).exit_index, 1).tolist()
    )
    plain = [read(client.post(INFER, **sent({"row": ROWS})))["exit"] for _ in range(2)]
    assert plain[0].tolist() == plain[1].tolist()  # the same content tosses the same coins


def test_the_id_comes_back_and_outputs_may_be_mixed(client):
    body = json.loads(sent({"row": ROWS[:2]})["content"]) | {
        "id": "seven",
        "outputs": [{"name": "label"}, {"name": "cost", "parameters": {"binary_data": True}}],
    }
    answer = client.post(INFER, json=body)
    length = int(answer.headers["Inference-Header-Content-Length"])
    header = json.loads(answer.content[:length])
    assert (header["id"], header["model_name"]) == ("seven", "m")
    assert answer.headers["content-type"] == "application/octet-stream" and len(answer.content) == length + 16
    assert set(read(answer)) == {"label", "cost"}


def test_the_protocol_describes_server_and_model(client, pictures):
    assert "binary_tensor_data" in client.get("/v2").json()["extensions"]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/m", "/v2/models/m/ready"):
        assert client.get(path).status_code == 200
    about = pictures.get("/v2/models/digits").json()
    assert about["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert about["outputs"][1] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}
    assert pictures.post("/v2/models/digits/versions/1/infer", **sent({"input": prepared()})).status_code == 200


def prepared() -> np.ndarray:
    return digits().inputs(slice(0, 20)).numpy()


def test_raw_pictures_prepared_ones_and_files_are_answered_alike(pictures):
    address, asking = "/v2/models/digits/infer", {"parameters": {"sample_id": 0}}
    plain = read(pictures.post(address, **sent({"input": prepared()}, **asking)))
    raw = read(pictures.post(address, **sent({"images": PICTURES}, binary=True, **asking)))
    same = raw["exit"] == plain["exit"]  # rounding may move a sample across a threshold
    assert same.sum() >= len(same) - 1
    np.testing.assert_allclose(raw["probabilities"][same], plain["probabilities"][same], atol=1e-4)
    files = []
    for picture in PICTURES[:3]:
        files.append(BytesIO())
        Image.fromarray(picture[0]).save(files[-1], "png")
    form = [("file", (f"{k}.png", file.getvalue(), "image/png")) for k, file in enumerate(files)]
    found = pictures.post("/predict", files=form, data={"top_k": "3", "max_exit": "2"}).json()["answers"]
    names = exported("onnxruntime").manifest["classes"]
    for k, one in enumerate(found):
        assert (one["input"], one["unit"], len(one["classes"])) == (f"{k}.png", "ms", 3)
        assert one["label"] == one["classes"][0]["label"] and one["cost"] == EXPORT_COSTS.cumulative[one["exit"]]
        if one["exit"] == plain["exit"][k]:
            assert one["label"] == names[plain["label"][k]]
            assert one["score"] == pytest.approx(plain["score"][k], abs=1e-4)
    body = {"content": files[0].getvalue(), "headers": {"content-type": "image/png"}}
    (alone,) = pictures.post("/predict", **body).json()["answers"]
    assert alone["input"] == "picture" and alone["label"] in names


def test_texts_are_answered_with_the_names_of_classes():
    bundle = small_bundle()
    served = Served(name="m", model=bundle.adaptive(), classes=KINDS, preparation=small_preparation())
    texts = [text for text, _ in small_texts(6)]
    with listening(served) as (url, _), httpx.Client(base_url=url) as client:
        form = client.post("/predict", data={"text": texts, "budget": "2.5"}).json()["answers"]
        assert [one["input"] for one in form] == texts and {one["label"] for one in form} <= set(KINDS)
        alone = client.post("/predict", content=texts[0], headers={"content-type": "text/plain"}).json()["answers"]
        assert (alone[0]["input"], alone[0]["label"]) == (texts[0], form[0]["label"])
        tensors = read(client.post(INFER, **sent({"text": np.array(texts, object)}, parameters={"budget": "2.5"})))
        assert [KINDS[label] for label in tensors["label"]] == [one["label"] for one in form]
        assert [one["name"] for one in client.get("/v2/models/m").json()["inputs"]] == ["input_ids", "attention_mask"]
        tokens = small_preparation()(texts)
        again = read(client.post(INFER, **sent(tokens, binary=True, parameters={"budget": "2.5"})))
        assert again["label"].tolist() == tensors["label"].tolist()
        assert client.post("/predict", files={"file": b"no text"}).status_code == 400


# --- what is refused --------------------------------------------------------------------------------------------------

WRONG = {
    "no JSON": {"content": b"{"},
    "nothing": {"content": b""},
    "another type": sent({"row": ROWS[:1].astype(np.float64)}),
    "a fraction of a budget": sent({"row": ROWS[:1]}, parameters={"budget": "1%"}),
    "no such exit": sent({"row": ROWS[:1]}, parameters={"max_exit": 9}),
    "too many samples": sent({"row": np.zeros((201, 1), np.int64)}),
    "a length that lies": {"content": b"{}", "headers": {"Inference-Header-Content-Length": "99"}},
    "texts": sent({"row": np.array(["a"], object)}),
}


@pytest.mark.parametrize("request_", [one for name, one in WRONG.items() if name != "another type"])
def test_bad_requests_are_refused_with_a_sentence(client, request_):
    answer = client.post(INFER, **request_)
    assert answer.status_code == 400 and answer.json()["error"].endswith(".")


@pytest.mark.parametrize(
    ("inputs", "fact"),
    [
        ({"input": prepared().astype(np.float64)}, "float64"),
        ({"input": prepared()[:, :, :7]}, "shape"),
        ({"other": prepared()}, "other"),
        ({"input": prepared(), "more": prepared()}, "more"),
        ({"images": PICTURES[:, :, :5]}, "shape"),
        ({"input": np.array(["a"], object)}, "texts"),
    ],
)
def test_tensors_that_the_model_does_not_take_are_refused(pictures, inputs, fact):
    answer = pictures.post("/v2/models/digits/infer", **sent(inputs))
    assert answer.status_code == 400 and fact in answer.json()["error"]


def test_a_nan_is_refused_at_the_door(pictures):
    values = prepared()[:2].copy()
    values[1, 0, 0, 0] = np.nan
    answer = pictures.post("/v2/models/digits/infer", **sent({"input": values}, binary=True))
    assert answer.status_code == 400 and "sample 1" in answer.json()["error"]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"files": {"file": b"no picture"}}, 400),
        ({"data": {"text": "a text"}}, 400),
        ({"files": {"picture": b""}}, 400),
        ({"data": {"file": "/etc/passwd"}}, 400),
        ({"files": {"file": ("/etc/passwd", b"")}}, 400),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400),
        ({"content": b"\xff", "headers": {"content-type": "text/plain"}}, 400),
        ({"content": b"text=%ff", "headers": {"content-type": "application/x-www-form-urlencoded"}}, 400),
        ({"content": b"&" * 99, "headers": {"content-type": "application/x-www-form-urlencoded"}}, 400),
        ({"content": b"{}"}, 400),
        ({"content": b"{}", "headers": {"content-encoding": "gzip"}}, 415),
    ],
)
def test_what_people_send_wrong_is_refused_with_a_sentence(pictures, asked, status):
    answer = pictures.post("/predict", **asked)
    assert answer.status_code == status and answer.json()["error"].endswith(".")


def test_other_addresses_and_methods_are_answered_in_json(client):
    for method, path, status in (
        ("GET", "/v2/models/other", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/nothing", 404),
        ("DELETE", "/v2", 405),
    ):
        answer = client.request(method, path)
        assert answer.status_code == status and answer.json()["error"]


def test_no_request_names_a_file(client):
    for path in ("/page.py", "/..%2fapp.py", "/page.css/../app.py", "/v2/models/..%2f..%2fetc%2fpasswd"):
        assert client.get(path).status_code == 404


def test_large_bodies_are_refused(dial):
    with listening(replayed(dial.at(2.5)), limits=Limits(body_bytes=2000)) as (url, _), httpx.Client(base_url=url) as c:
        assert c.post(INFER, **sent({"row": ROWS[:5]})).status_code == 200
        assert c.post(INFER, content=b" " * 2001).status_code == 413
        assert c.post(INFER, content=(b" " * 500 for _ in range(5))).status_code == 413  # of no stated length
        assert "2000 bytes" in c.post("/predict", content=b" " * 2001).json()["error"]
        assert c.post(INFER, **sent({"row": ROWS[:5]})).status_code == 200


def test_a_token_is_asked_for(dial):
    token = "a token of many characters".replace(" ", "-")
    with listening(replayed(dial.at(2.5), dial), token=token) as (url, _), httpx.Client(base_url=url) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": token}, {"authorization": "Bearer é"}):
            encoded = {name: value.encode() for name, value in headers.items()}
            for path in ("/v2", "/v2/models/m", "/numbers", "/metrics", "/v2/models/m/budget"):
                answer = client.get(path, headers=encoded)
                assert answer.status_code == 401 and "token" in answer.json()["error"]
            assert client.post(INFER, headers=encoded, content=b"").status_code == 401
        for path in ("/v2/health/live", "/v2/health/ready", "/", "/page.js", "/docs"):
            assert client.get(path).status_code == 200
        client.headers["authorization"] = f"Bearer {token}"
        assert client.get("/numbers").status_code == 200
        assert client.post(INFER, **sent({"row": ROWS})).status_code == 200


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_sample_that_cannot_be_run_fails_alone(dial):
    policy = policies(LOGITS)["nobody leaves early"]
    requests = [sent({"row": ROWS[k : k + 1]}, parameters={"sample_id": k}) for k in range(COUNT)]
    with listening(replayed(policy, engine=Failing(LOGITS)), max_wait_ms=20) as (url, _):
        answers = asyncio.run(asked_at_once(url, requests))
        assert [answer.status_code for answer in answers] == [200] * (COUNT - 1) + [500]
        assert "row that cannot be run" in answers[-1].json()["error"]
        trace = replay(policy, TABLE)
        for k, answer in enumerate(answers[:-1]):
            same_as(read(answer), trace, slice(k, k + 1))
        assert httpx.post(f"{url}{INFER}", **requests[0]).status_code == 200


def test_a_full_queue_is_429_and_a_draining_server_503(dial):
    engine = Waiting(LOGITS)
    engine.gate.clear()
    with listening(replayed(dial.at(2.5), engine=engine), queue_limit=8) as (url, service):
        found = []
        waiting = threading.Thread(target=lambda: found.append(httpx.post(f"{url}{INFER}", **sent({"row": ROWS[:8]}))))
        waiting.start()
        while service.snapshot().requests < 1:
            pass
        full = httpx.post(f"{url}{INFER}", **sent({"row": ROWS[:1]}))
        assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
        draining = threading.Thread(target=service.drain, args=(10,))
        draining.start()
        while service.ready:
            pass
        assert httpx.post(f"{url}{INFER}", **sent({"row": ROWS[:1]})).status_code == 503
        assert httpx.get(f"{url}/v2/health/ready").status_code == 503
        assert httpx.get(f"{url}/v2/models/m/ready").status_code == 503
        assert httpx.get(f"{url}/v2/health/live").status_code == 200
        engine.gate.set()
        waiting.join()
        draining.join()
        assert read(found[0])["exit"].shape == (8,)


HEAD = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n".encode()
SLOW = {"nothing": b"", "half a head": HEAD, "half a body": HEAD + b"\r\n{"}
BROKEN = {"garbage": b"\x16\x03\x01\0\0\r\n\r\n", "a long head": b"GET / HTTP/1.1\r\nX: " + b"x" * 2_000_000}


def said_to(client: socket.socket) -> bytes:
    """Return what a connection is answered until it is closed."""
    client.settimeout(20)
    found = []
    with suppress(ConnectionResetError):
        while part := client.recv(65536):
            found.append(part)
    return b"".join(found)


def test_slow_and_broken_clients_are_let_go_and_their_peers_unharmed(dial):
    limits = Limits(client_timeout_s=1.0)
    with listening(replayed(dial.at(2.5), dial), limits=limits) as (url, service):
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        clients = {name: socket.create_connection(place) for name in (*SLOW, *BROKEN)}
        for name, text in {**SLOW, **BROKEN}.items():
            with suppress(ConnectionError):
                clients[name].sendall(text)
        gone = [socket.create_connection(place) for _ in range(20)]  # ask, and go away
        for k, client in enumerate(gone):
            one = sent({"row": ROWS[:1]})["content"]
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(one)}\r\n\r\n".encode()
            client.sendall(head + one[: len(one) if k % 2 else 20])
            client.close()
        trace, asked = replay(dial.at(2.5), TABLE), sent({"row": ROWS}, parameters={"sample_id": 0})
        for answer in asyncio.run(asked_at_once(url, [asked] * 8)):
            same_as(read(answer), trace)
        found = {name: said_to(client) for name, client in clients.items()}
        assert found["nothing"] == found["half a head"] == b""
        assert found["half a body"].startswith(b"HTTP/1.1 408") and b"within 1 s" in found["half a body"]
        assert all(found[name] == b"" or found[name].startswith(b"HTTP/1.1 400") for name in BROKEN)
        assert service.snapshot().failures == 0
        same_as(read(httpx.post(f"{url}{INFER}", **asked)), trace)
        for client in clients.values():
            client.close()


# --- the dial and the numbers -----------------------------------------------------------------------------------------


def test_the_dial_turns_under_load_and_no_answer_is_lost_or_of_two_policies(dial):
    budgets = [1.5, 2.0, 2.5, 3.0, 3.5]
    traces = [replay(dial.at(budget), TABLE) for budget in budgets]
    with listening(replayed(dial.at(2.5), dial), max_wait_ms=1, queue_limit=4000) as (url, _):

        async def load() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=url, timeout=30) as client:

                async def turn() -> None:
                    for k in range(100):
                        answer = await client.put("/v2/models/m/budget", json={"budget": budgets[k % 5]})
                        assert answer.json()["value"] == budgets[k % 5]

                asked = sent({"row": ROWS[:16]}, parameters={"sample_id": 0})
                *answers, _ = await asyncio.gather(*(client.post(INFER, **asked) for _ in range(120)), turn())
                return answers

        for answer in asyncio.run(load()):
            found = read(answer)["exit"].tolist()
            assert any(found == trace.exit_index[:16].tolist() for trace in traces)


def test_the_budget_is_shown_turned_and_refused(client):
    address = "/v2/models/m/budget"
    turned = client.put(address, json={"budget": "75%"}).json()
    assert (turned["budget"], turned["value"], turned["unit"], turned["range"]) == ("75%", 3.0, "ms", [1.0, 4.0])
    assert client.get(address).json() == turned
    for body in (b"", b"{}", b'{"budget": "0.1%"}', b'{"budget": "3 apples"}', b'{"budget": null}'):
        answer = client.put(address, content=body)
        assert answer.status_code == 400 and answer.json()["error"].endswith(".")
    assert client.get(address).json()["value"] == 3.0


def test_a_model_without_a_dial_says_so():
    with listening(replayed(policies(LOGITS)["max_prob"])) as (url, _), httpx.Client(base_url=url) as client:
        assert client.get("/numbers").json()["costs"] is None
        answer = client.put("/v2/models/m/budget", json={"budget": "75%"})
        assert answer.status_code == 400 and "dial" in answer.json()["error"]


def test_metrics_count_what_was_answered(dial):
    with listening(replayed(dial.at(2.5), dial), shadow=1.0) as (url, _), httpx.Client(base_url=url) as client:
        for _ in range(3):
            exits = read(client.post(INFER, **sent({"row": ROWS}, parameters={"sample_id": 0})))["exit"]
        client.post(INFER, content=b"{")
        found = client.get("/metrics")
        from prometheus_client.parser import text_string_to_metric_families

        values = {
            (sample.name, *(value for label, value in sample.labels.items() if label != "model")): sample.value
            for family in text_string_to_metric_families(found.text)
            for sample in family.samples
        }
        assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert (values["eenet_requests_total",], values["eenet_samples_total",]) == (3, 3 * COUNT)
        for k in range(4):
            assert values["eenet_exit_samples_total", str(k)] == 3 * (exits == k).sum()
            assert values["eenet_score_count", str(k)] == 3 * (exits == k).sum()
        assert values["eenet_mean_cost",] == pytest.approx(np.take(COSTS.cumulative, exits).mean())
        assert values["eenet_latency_seconds_count",] == 3 and values["eenet_latency_seconds_bucket", "+Inf"] == 3
        assert values["eenet_ready",] == 1 and values["eenet_alarm", "agreement"] in (0, 1)
        numbers = client.get("/numbers").json()
        assert numbers["samples"] == 3 * COUNT and sum(numbers["exits"]) == 3 * COUNT


def test_pages_ask_nothing_of_other_hosts_and_list_every_address(client):
    schema = client.get("/openapi.json").json()
    docs = client.get("/docs")
    assert "default-src 'self'" in docs.headers["content-security-policy"]
    for path, methods in schema["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in docs.text
    for path in ("/", "/page.js", "/page.css", "/docs"):
        answer = client.get(path)
        assert answer.status_code == 200 and "http://" not in answer.text and "https://" not in answer.text
