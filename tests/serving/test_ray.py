"""Ray, where it is installed: the answers of one machine, whatever is lost on the way."""

import json
import os
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from eenet import AdaptiveModel
from eenet.errors import BudgetError, InputError

ray = pytest.importorskip("ray", reason="ray is not installed: make test-ray does that, in an environment of its own")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

COUNT, AT_A_TIME = 1000, 64
IDS = np.arange(COUNT)


@pytest.fixture(scope="module")
def folder() -> Path:
    """What tests/no_torch/make_export.py wrote."""
    if "EENET_EXPORT" not in os.environ:
        pytest.skip("EENET_EXPORT is not set: it names the folder that tests/no_torch/make_export.py wrote")
    return Path(os.environ["EENET_EXPORT"]).resolve()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    # workers are nice by default: beside other tests they would hardly run
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def model(folder) -> AdaptiveModel:
    return AdaptiveModel(folder / "export")


@pytest.fixture(scope="module")
def images(folder) -> np.ndarray:
    """As many as are needed: the test images again and again, each time a little darker."""
    some = np.load(folder / "inputs.npz")["inputs"]
    return np.concatenate([some * (1 - 0.02 * i) for i in range(-(-COUNT // len(some)))])[:COUNT].astype(np.float32)


# --- Ray Data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "budget"), [(10_000, None), (2_000, "40%")])
def test_many_samples_come_back_in_order(cluster, folder, model, images, count, budget) -> None:
    from eenet.serving.ray_data import predict_dataset

    many = np.concatenate([images * (1 - 0.01 * i) for i in range(count // COUNT)]).astype(np.float32)
    dataset = ray.data.from_numpy([many[i : i + 1000] for i in range(0, len(many), 1000)])
    dataset = dataset.map_batches(lambda batch: {"inputs": batch["data"], "number": batch["data"][:, 0, 0, 0]})
    found = predict_dataset(dataset, folder / "export", budget=budget).take_all()
    from eenet.serving.service import content_ids

    turned = model if budget is None else model.at(budget)
    wanted = turned.predict_all(many, sample_ids=content_ids(many), batch_size=256)
    assert len(found) == len(many)
    np.testing.assert_array_equal([row["number"] for row in found], many[:, 0, 0, 0])
    columns = [np.array([row[name] for row in found]) for name in ("exit", "label", "probabilities")]
    assert_like(columns, wanted)
    assert set(found[0]) == {"number", "label", "probabilities", "exit", "cost", "score"}


# --- Ray Serve --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def handle(cluster, folder):
    from ray import serve

    from eenet.serving.ray_serve import ray_app

    serve.start(http_options={"port": 8765}, logging_config={"log_level": "ERROR", "enable_access_log": False})
    return serve.run(ray_app(folder / "export", name="digits", max_replicas=2, retry_s=60))


def asked(handle, images, rows, during=None, **budget):
    """Ask for one sample at a time, many at once; return exits, labels and probabilities in order."""
    waiting, found = [], {}
    for i, row in enumerate(rows):
        waiting.append((row, handle.predict.remote(images[row : row + 1], sample_ids=[IDS[row]], **budget)))
        if len(waiting) == AT_A_TIME:
            found |= {row: answer.result(timeout_s=120) for row, answer in waiting}
            waiting = []
            if during is not None:
                during(i)
    found |= {row: answer.result(timeout_s=120) for row, answer in waiting}
    answers = [found[row] for row in rows]
    return [np.concatenate([getattr(one, name) for one in answers]) for name in ("exit", "label", "probabilities")]


def assert_like(found, wanted) -> None:
    """The same exits and classes; a score that close to a threshold may fall otherwise in another batch."""
    exits, labels, probabilities = found
    same = exits == wanted.exit_index
    assert same.mean() >= 0.999
    np.testing.assert_array_equal(labels[same], wanted.labels[same])
    np.testing.assert_allclose(probabilities[same], np.exp(wanted.log_probs[same]), atol=1e-4)


def test_a_thousand_requests_are_answered_as_on_one_machine(handle, model, images) -> None:
    wanted = model(images, IDS)
    assert len(set(wanted.exit_index.tolist())) > 1
    assert_like(asked(handle, images, range(COUNT)), wanted)


def test_a_budget_goes_with_its_request(handle, model, images) -> None:
    rows = range(200)
    for budget in ("40%", "95%"):
        wanted = model.at(budget)(images[:200], IDS[:200])
        assert_like(asked(handle, images, rows, budget=budget), wanted)
    exits, _, _ = asked(handle, images, range(20), max_exit=0)
    assert (exits == 0).all()


def test_a_replica_that_is_killed_loses_no_request(handle, model, images) -> None:
    from ray.util import list_named_actors

    killed = []

    def kill(i: int) -> None:
        if i < AT_A_TIME * 3 or killed:
            return
        for one in list_named_actors(all_namespaces=True):
            if "#stage_0#" in one["name"] or "#stage_2#" in one["name"]:
                ray.kill(ray.get_actor(one["name"], namespace=one["namespace"]))
                killed.append(one["name"])

    found = asked(handle, images, range(COUNT), during=kill)
    assert {"stage_0", "stage_2"} <= {name.split("#")[1] for name in killed}
    assert_like(found, model(images, IDS))


def call(path: str, body: bytes | None = None, method: str = "GET") -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:8765{path}", body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_surface_is_that_of_the_server(handle, model, images) -> None:
    from eenet.serving.protocol import write_request

    body, _ = write_request({model.engine.inputs[0].name: images[:8]}, parameters={"sample_id": 0})
    status, answer = call("/v2/models/digits/infer", body, "POST")
    assert status == 200
    outputs = {one["name"]: one["data"] for one in json.loads(answer)["outputs"]}
    wanted = model(images[:8], IDS[:8])
    assert outputs["exit"] == wanted.exit_index.tolist()
    assert outputs["label"] == wanted.labels.tolist()
    assert call("/v2/health/ready")[0] == 200
    assert call("/v2/models/other")[0] == 404
    assert call("/v2/models/digits/infer", b"{}", "POST")[0] == 400
    assert b"eenet_requests_total" in call("/metrics")[1]
    status, answer = call("/v2/models/digits/budget", b'{"budget": "40%"}', "PUT")
    assert (status, json.loads(answer)["budget"]) == (200, "40%")
    assert call("/v2/models/digits/budget", b'{"budget": "1%"}', "PUT")[0] == 400
    status, answer = call("/v2/models/digits/infer", body, "POST")
    assert status == 200


def test_what_cannot_be_is_refused_before_anything_starts(folder) -> None:
    from eenet.serving.ray_serve import ray_app

    with pytest.raises(InputError):
        ray_app(folder)
    with pytest.raises(BudgetError):
        ray_app(folder / "export", budget="1%")
    with pytest.raises(InputError, match="max_batch 0"):
        ray_app(folder / "export", max_batch=0)
