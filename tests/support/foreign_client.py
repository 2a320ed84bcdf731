"""Asks a server by tritonclient, a client of the Open Inference Protocol of another project; knows nothing of eenet.

`python foreign_client.py HOST:PORT MODEL` in an environment that has tritonclient[http]: JSON and binary, with
parameters, chosen outputs and a refusal. Exits with 0 where all is as it should be.
"""

import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def main(address: str, model: str) -> None:
    client = triton.InferenceServerClient(address)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    (taken,) = client.get_model_metadata(model)["inputs"]
    values = np.random.default_rng(0).standard_normal((6, *taken["shape"][1:])).astype(np.float32)
    names = ["label", "probabilities", "exit", "cost", "score"]
    found = []
    for binary in (True, False):
        given = triton.InferInput(taken["name"], list(values.shape), taken["datatype"])
        given.set_data_from_numpy(values, binary_data=binary)
        wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
        asked = {"parameters": {"budget": "90%", "sample_id": 4}, "request_id": "seven"}
        answer = client.infer(model, [given], outputs=wanted, **asked)
        assert answer.get_response()["id"] == "seven"
        found.append({name: answer.as_numpy(name) for name in names})
        assert answer.as_numpy("probabilities").shape[0] == 6
    for name in names:
        np.testing.assert_array_equal(found[0][name], found[1][name])
    answer = client.infer(model, [given])
    assert {one["name"] for one in answer.get_response()["outputs"]} == set(names)
    wrong = triton.InferInput(taken["name"], [1, 3], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 3), np.float32))
    try:
        client.infer(model, [wrong])
    except InferenceServerException as error:
        assert "shape" in str(error)
    else:
        raise AssertionError("a tensor of another shape was taken")
    print(f"labels {found[0]['label'].tolist()}, exits {found[0]['exit'].tolist()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
