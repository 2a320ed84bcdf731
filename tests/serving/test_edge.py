"""A weak device and its server: the answers of one machine together, and an answer to every sample whatever fails."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from exporting import digits, exported

from eenet import AdaptiveModel
from eenet.errors import EenetError, InputError, RunError
from eenet.running import Tier, split_export
from eenet.running.sent import Sent
from eenet.serving.answers import Answer
from eenet.serving.edge import EdgeClient, read_answer
from eenet.serving.protocol import InferRequest, write_response
from eenet.serving.resume import Resumer, resume
from eenet.tables.tensors import from_bytes, to_bytes

IMAGES, IDS = digits().inputs(slice(0, 60)).numpy(), np.arange(60)
NAMES = ("label", "probabilities", "exit", "cost", "score")


@pytest.fixture(scope="module")
def server():
    return AdaptiveModel(exported("onnxruntime").path)


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    path = tmp_path_factory.mktemp("device") / "tier"
    split_export(exported("onnxruntime").path, path, last=0)
    return path


@pytest.fixture(scope="module")
def state(device) -> bytes:
    return Tier(device)(IMAGES, IDS).state


def body_of(answer: Answer) -> bytes:
    found, _ = write_response("m", InferRequest(inputs={}), {name: getattr(answer, name) for name in NAMES})
    return found


@contextmanager
def answering(post: Callable[[BaseHTTPRequestHandler, bytes], tuple[int, bytes]]) -> Iterator[str]:
    """A server of the standard library; what `post` returns is answered. Yields the address of its model."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, body = post(self, self.rfile.read(int(self.headers["Content-Length"])))
            with suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_address[1]}/v2/models/m"
        finally:
            listener.shutdown()
            thread.join()


def assert_like(found: Answer, wanted, rows=slice(None)) -> None:
    """The answers of one machine; batches differ, so that rounding may."""
    np.testing.assert_array_equal(found.exit[rows], wanted.exit_index[rows])
    np.testing.assert_array_equal(found.label[rows], wanted.labels[rows])
    np.testing.assert_array_equal(found.cost[rows], wanted.cost[rows])
    np.testing.assert_allclose(found.probabilities[rows], np.exp(wanted.log_probs[rows]), rtol=1e-5)


# --- going on ---------------------------------------------------------------------------------------------------------


def test_resumed_samples_are_answered_as_on_one_machine(server, device, state) -> None:
    here = Tier(device)(IMAGES, IDS)
    staying = np.setdiff1d(IDS, here.rows)
    found = resume(server, state)
    wanted = server(IMAGES, IDS)
    assert 0 < len(staying) < len(IDS)
    assert_like(found, type(wanted)(**{name: getattr(wanted, name)[staying] for name in vars(wanted)}))
    assert found.score.tolist() == found.probabilities.max(axis=1).tolist()


def test_answers_are_in_the_order_of_the_state(server, state) -> None:
    found, arrays = resume(server, state), from_bytes(state, "state")
    turned = {name: value if name == "about" else value[::-1].copy() for name, value in arrays.items()}
    again = resume(server, to_bytes(turned))
    np.testing.assert_array_equal(again.exit, found.exit[::-1])
    np.testing.assert_allclose(again.probabilities, found.probabilities[::-1], rtol=1e-5)


def test_a_tier_that_others_go_on_from_has_no_answers(server, device) -> None:
    with pytest.raises(InputError, match="stages 0 to 0 of 3"):
        Resumer(Tier(device))
    last = Tier(server.engine, server.policy, server.costs, first=1)
    assert Resumer(last).model is last


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 100, b"\xff" * 8, b"PK\x03\x04" * 50])
def test_other_bytes_are_refused(server, content) -> None:
    with pytest.raises(InputError, match="state"):
        resume(server, content)


def test_damaged_bytes_are_refused(server, state) -> None:
    rng = np.random.default_rng(0)
    for place in rng.integers(len(state), size=60):
        changed = bytearray(state)
        changed[place] ^= 1 << int(rng.integers(8))
        with pytest.raises(EenetError):
            resume(server, bytes(changed))
    for size in rng.integers(len(state), size=20):
        with pytest.raises(InputError):
            resume(server, state[:size])


VALUES = (None, -1, 0, 1, 2, 3, 2**70, 1e300, "x", [], {}, {"size": [8, 8]}, [[[]]], True, ["float64"], ["<U5"])


@pytest.mark.parametrize("key", ["source", "policy", "engine", "exit", "num_exits", "form", "dtypes", "version"])
def test_forged_bytes_are_refused_or_harmless(server, state, key) -> None:
    """Whoever forges a state can make its checksum, too."""
    resumer = Resumer(server)
    arrays = from_bytes(state, "state")
    about = json.loads(arrays["about"].tobytes())
    for value in VALUES:
        changed = arrays | {"about": np.frombuffer(json.dumps(about | {key: value}).encode(), np.uint8)}
        try:
            resumer(to_bytes(changed))
        except EenetError:
            continue
        assert value == about[key] or (key, value) == ("source", ""), (key, value)
    assert len(resumer(state).label)  # the next one is not harmed


def test_forged_tensors_are_refused(server, state) -> None:
    arrays = from_bytes(state, "state")
    name = next(one for one in arrays if one.startswith("state"))
    rows = len(arrays["ids"])
    for changed in (
        {name: arrays[name][:, :1]},
        {name: arrays[name].astype(np.float64)},
        {name: np.full_like(arrays[name], np.nan)},
        {name: arrays[name][:-1]},
        {"rows": np.zeros(rows, np.int64)},
        {"ids": np.zeros((rows, 1), np.int64)},
        {"seen": np.zeros((rows, 1, 4), np.float32)},
    ):
        with pytest.raises(EenetError):
            resume(server, to_bytes(arrays | changed))


def test_a_state_of_another_model_is_refused(server, state) -> None:
    sent = Sent.from_bytes(state)
    for changed, fact in (({"source": "0" * 64}, "another model"), ({"policy": "0" * 64}, "another policy")):
        with pytest.raises(InputError, match=fact):
            resume(server, type(sent)(**(vars(sent) | changed)).to_bytes())


# --- both ends --------------------------------------------------------------------------------------------------------


def test_device_and_server_answer_as_one_machine(server, device) -> None:
    asked = []

    def post(handler, body):
        asked.append((handler.path, handler.headers["Content-Type"], handler.headers["Authorization"]))
        return 200, body_of(resume(server, body))

    wanted = server(IMAGES, IDS)
    with answering(post) as url:
        found = EdgeClient(device, url, token="secret")(IMAGES, IDS)
    assert_like(found, wanted)
    assert found.source.tolist() == ["edge" if k == 0 else "server" for k in wanted.exit_index]
    assert asked == [("/v2/models/m/resume", "application/octet-stream", "Bearer secret")]


def assert_fallback(found, wanted) -> None:
    """Who left on the device is answered as ever, who should go on by the device's last exit."""
    left = wanted.exit_index == 0
    assert_like(found, wanted, left)
    assert found.source.tolist() == ["edge" if one else "fallback" for one in left]
    assert (found.exit == 0).all()
    assert (found.cost == 1.0).all()
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)


def test_a_server_that_dies_loses_no_sample(server, device) -> None:
    wanted = [server(IMAGES[rows], IDS[rows]) for rows in (slice(0, 20), slice(20, 40), slice(40, 60))]
    with answering(lambda _, body: (200, body_of(resume(server, body)))) as url:
        client = EdgeClient(device, url, timeout_s=2, pause_s=0)
        first = client(IMAGES[:20], IDS[:20])
    second = client(IMAGES[20:40], IDS[20:40])
    assert_like(first, wanted[0])
    assert "fallback" not in first.source
    assert_fallback(second, wanted[1])


def test_the_answer_of_the_fallback_is_what_the_last_local_exit_says(device) -> None:
    found = EdgeClient(device, "http://127.0.0.1:9/v2/models/m", retries=0)(IMAGES, IDS)
    tier = Tier(device)
    result = tier(IMAGES, IDS)
    rows = found.source == "fallback"
    np.testing.assert_allclose(np.log(found.probabilities[rows]), result.so_far, atol=1e-5)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b'{"error": "engine failed"}'),
        (429, b'{"error": "queue is full"}'),
        (400, b'{"error": "another policy"}'),
        (401, b"{}"),
        (302, b""),
        (200, b"no JSON"),
        (200, b"{}"),
        (200, b"[1]"),
        (200, b"[" * 100_000),
        (200, b'{"outputs": [1]}'),
        (200, b'{"outputs": [{"name": "label", "datatype": "INT64", "shape": [1], "data": [1]}]}'),
    ],
)
def test_whatever_the_server_answers_nobody_is_lost(server, device, status, body) -> None:
    tries = []

    def post(handler, _):
        tries.append(handler.path)
        return status, body

    with answering(post) as url:
        found = EdgeClient(device, url, retries=2, timeout_s=5)(IMAGES[:20], IDS[:20])
    assert_fallback(found, server(IMAGES[:20], IDS[:20]))
    assert len(tries) == (3 if status in (500, 429) else 1)


def test_an_error_that_goes_away_is_tried_again(server, device) -> None:
    tries = []

    def post(_, body):
        tries.append(len(body))
        return (503, b"") if len(tries) < 3 else (200, body_of(resume(server, body)))

    with answering(post) as url:
        found = EdgeClient(device, url, retries=2)(IMAGES, IDS)
    assert_like(found, server(IMAGES, IDS))
    assert len(set(tries)) == 1


def test_a_slow_server_takes_no_more_than_its_time(server, device) -> None:
    def post(handler, _):
        handler.send_response(200)
        handler.end_headers()
        with suppress(OSError):  # the client goes away
            for _ in range(40):  # a byte from time to time keeps a connection open
                handler.wfile.write(b" ")
                time.sleep(0.05)
        return 200, b""

    with answering(post) as url:
        client = EdgeClient(device, url, retries=3, timeout_s=0.3)
        began = time.monotonic()
        found = client(IMAGES[:20], IDS[:20])
        assert time.monotonic() - began < 1.5
        assert_fallback(found, server(IMAGES[:20], IDS[:20]))
        began = time.monotonic()
        client(IMAGES[:20], IDS[:20])
        assert time.monotonic() - began < 0.25  # it is not asked again so soon


def test_forged_answers_are_refused() -> None:
    good = Answer(
        label=np.array([1]),
        probabilities=np.array([[0.2, 0.8]], np.float32),
        exit=np.array([2]),
        cost=np.array([np.nan]),
        score=np.array([0.8]),
    )
    found = read_answer(body_of(good), (1, 2), 1, 3)
    assert np.isnan(found.cost).all()
    assert found.exit.tolist() == [2]
    for name, value in (("exit", 0), ("exit", 3), ("label", 2), ("label", -1), ("probabilities", [[np.nan, 1.0]])):
        wrong = Answer(
            **(vars(good) | {name: np.array(value, getattr(good, name).dtype).reshape(getattr(good, name).shape)})
        )
        with pytest.raises(RunError, match="cannot be used"):
            read_answer(body_of(wrong), (1, 2), 1, 3)
    with pytest.raises(RunError, match="cannot be used"):
        read_answer(body_of(good), (2, 2), 1, 3)


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"url": "server:8000"}, "url"),
        ({"url": "ftp://server/m"}, "url"),
        ({"url": "http://server:99999/m"}, "url"),
        ({"url": "http://server/m?x=1"}, "url"),
        ({"token": "a\nb"}, "token"),
        ({"timeout_s": 0}, "timeout_s 0"),
        ({"retries": -1}, "retries -1"),
    ],
)
def test_what_cannot_be_is_refused(device, changes, fact) -> None:
    values = {"url": "http://server/v2/models/m"} | changes
    with pytest.raises(InputError, match=fact):
        EdgeClient(device, **values)


def test_the_device_has_the_first_stages_and_not_all(server) -> None:
    for at in ({"first": 1}, {}):
        tier = Tier(server.engine, server.policy, server.costs, **at)
        with pytest.raises(InputError, match="first ones"):
            EdgeClient(tier, "http://server/v2/models/m")


# --- with the real server ---------------------------------------------------------------------------------------------


@contextmanager
def serving(**settings) -> Iterator[tuple[str, object]]:
    listening = pytest.importorskip("listening")
    from eenet.serving.served import Served

    model = AdaptiveModel(exported("onnxruntime").path)
    with listening.listening(Served(name="m", model=model), **settings) as (url, service):
        yield f"{url}/v2/models/m", service


def test_device_and_real_server_answer_as_one_machine(server, device) -> None:
    with serving(token="a token of many letters") as (url, service):
        client = EdgeClient(device, url, token="a token of many letters")
        found = [client(IMAGES[row], IDS[row]) for row in (slice(0, 30), slice(30, 60))]
        without = EdgeClient(device, url)(IMAGES[:30], IDS[:30])
        numbers = service.snapshot()
    wanted = server(IMAGES, IDS)
    assert_like(Answer(**{name: np.concatenate([getattr(one, name) for one in found]) for name in NAMES}), wanted)
    assert {"edge", "server"} == {*found[0].source, *found[1].source}
    assert "server" not in without.source
    assert numbers.exits[0] == 0
    assert numbers.samples == int((wanted.exit_index > 0).sum())


def test_resumed_samples_run_between_those_of_others(server, state) -> None:
    """Whatever comes at the same time, everybody is answered as ever; who sends rubbish fails alone."""
    from eenet.serving import Service

    wanted, resumed = server(IMAGES, IDS), resume(server, state)
    with Service(AdaptiveModel(exported("onnxruntime").path), max_batch=8) as service:
        with pytest.raises(InputError):
            service.resume(state[:-1])
        futures = []
        for row in range(60):
            futures.append(service.submit(IMAGES[row : row + 1], sample_ids=IDS[row : row + 1]))
            if row % 6 == 0:
                futures.append(service.resume(state))
        answers = [future.result(30) for future in futures]
        assert service.drain(10)
    direct = [one for one in answers if len(one.label) == 1]
    np.testing.assert_array_equal(np.concatenate([one.exit for one in direct]), wanted.exit_index)
    others = [one for one in answers if len(one.label) > 1]
    assert len(others) == 10
    for one in others:
        np.testing.assert_array_equal(one.exit, resumed.exit)
        np.testing.assert_array_equal(one.label, resumed.label)


def test_a_closed_service_answers_resumed_samples_with_an_error(state) -> None:
    from eenet.serving import Service, Stopped

    service = Service(AdaptiveModel(exported("onnxruntime").path), queue_limit=64)
    service.close()
    with pytest.raises(Stopped):
        service.resume(state)
