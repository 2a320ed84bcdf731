"""The v2 codec: what is written is read as it was, and anything else is refused in a sentence, whatever the bytes."""

import json
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eenet.errors import EenetError, InputError, ShapeError
from eenet.running.engines.graphs import TensorSpec
from eenet.serving.protocol import (
    OUTPUTS,
    InferRequest,
    model_metadata,
    read_budget,
    read_request,
    write_request,
    write_response,
)

NUMBERS = [
    np.bool_,
    *(np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)),
    np.float16,
    np.float32,
    "f8",
]
SHAPES = hnp.array_shapes(max_dims=4, max_side=4)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def arrays(dtype):
    return hnp.arrays(
        dtype, SHAPES, elements={"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else None
    )


ARRAYS = st.sampled_from([np.dtype(one) for one in NUMBERS]).flatmap(arrays)
TEXT_ARRAYS = hnp.arrays(object, SHAPES, elements=TEXTS)


def body(**changes) -> bytes:
    """A request of two samples with three numbers each; `changes` of its tensor, None leaves a key out."""
    tensor = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6.5]} | changes
    return json.dumps({"inputs": [{key: value for key, value in tensor.items() if value is not None}]}).encode()


def binary(data: bytes, more: bytes = b"", **changes) -> tuple[bytes, str]:
    changes = {"data": None, "parameters": {"binary_data_size": len(data)}} | changes
    text = body(**changes)
    return text + data + more, str(len(text))


def test_by_hand():
    found = read_request(body())
    np.testing.assert_array_equal(found.inputs["x"], np.array([[1, 2, 3], [4, 5, 6.5]], np.float32), strict=True)
    assert (found.id, found.budget, found.outputs) == ("", None, dict.fromkeys(OUTPUTS, False))
    nested = read_request(body(data=[[1, 2, 3], [4, 5, 6.5]]))
    np.testing.assert_array_equal(nested.inputs["x"], found.inputs["x"], strict=True)
    sent = read_request(*binary(np.array([1, 2, 3, 4, 5, 6.5], "<f4").tobytes()))
    np.testing.assert_array_equal(sent.inputs["x"], found.inputs["x"], strict=True)
    assert sent.inputs["x"].flags.writeable and sent.inputs["x"].flags.aligned


def test_the_upper_halves_of_float32_are_bf16():
    values = np.array([1.0, -2.5, 3.0, 0.15625, 1e30, 0.0], np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2")
    found = read_request(*binary(halves.tobytes(), datatype="BF16")).inputs["x"].ravel()
    np.testing.assert_allclose(found, values, rtol=2**-7)
    assert found.dtype == np.float32


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first text loads a table of all characters
@given(array=ARRAYS | TEXT_ARRAYS, as_bytes=st.booleans())
def test_requests_come_back_as_they_were(array, as_bytes):
    text, length = write_request({"x": array}, binary=as_bytes)
    found = read_request(text, None if length is None else str(length))
    np.testing.assert_array_equal(found.inputs["x"], array, strict=True)
    assert (length is not None) == as_bytes and found.outputs == dict.fromkeys(OUTPUTS, as_bytes)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(many=st.dictionaries(st.text("abc", min_size=1), ARRAYS | TEXT_ARRAYS, min_size=1, max_size=4))
def test_several_tensors_share_the_bytes_in_their_order(many):
    text, length = write_request(many, binary=True)
    found = read_request(text, str(length)).inputs
    assert list(found) == list(many)
    for name, array in many.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


ANSWERS = {
    "label": np.array([3, 1]),
    "probabilities": np.array([[0.25, 0.75], [0.5, 0.5]], np.float32),
    "exit": np.array([0, 2]),
    "cost": np.array([1.5, np.nan]),
    "score": np.array([0.75, -np.inf]),
}


def test_answers_hold_the_wanted_outputs():
    request = read_request(json.dumps(json.loads(body()) | {"id": "seven", "outputs": [{"name": "exit"}]}).encode())
    text, length = write_response("m", request, ANSWERS)
    one = {"name": "exit", "shape": [2], "datatype": "INT64", "data": [0, 2]}
    assert length is None and json.loads(text) == {"model_name": "m", "id": "seven", "outputs": [one]}


def test_json_answers_have_null_for_what_is_no_number():
    text, _ = write_response("m", InferRequest(inputs={}), ANSWERS)
    found = {one["name"]: one for one in json.loads(text)["outputs"]}
    assert found["cost"]["data"] == [1.5, None] and found["score"]["data"] == [0.75, None]
    assert found["probabilities"]["shape"] == [2, 2] and found["probabilities"]["data"] == [0.25, 0.75, 0.5, 0.5]
    assert {name: one["datatype"] for name, one in found.items()} == OUTPUTS


def test_binary_answers_follow_the_json():
    wanted = {"label": False, "probabilities": True, "cost": True}
    text, length = write_response("m", InferRequest(inputs={}, outputs=wanted), ANSWERS)
    header = json.loads(text[:length])
    assert [one.get("parameters") for one in header["outputs"]] == [
        None,
        {"binary_data_size": 16},
        {"binary_data_size": 16},
    ]
    assert text[length:] == ANSWERS["probabilities"].tobytes() + ANSWERS["cost"].tobytes()


def test_parameters_are_read():
    parameters = {"budget": "60%", "deadline_ms": 12, "max_exit": 1, "sample_id": 7, "binary_data_output": True}
    outputs = [{"name": "label", "parameters": {"binary_data": False}}, {"name": "exit"}]
    found = read_request(json.dumps(json.loads(body()) | {"parameters": parameters, "outputs": outputs}).encode())
    assert (found.budget, found.deadline_ms, found.max_exit) == ("60%", 12.0, 1)
    assert found.sample_ids(3).tolist() == [7, 8, 9] and found.outputs == {"label": False, "exit": True}
    assert read_request(body()).sample_ids(2) is None
    assert InferRequest(inputs={}, sample_id=2**63 - 1).sample_ids(2).tolist() == [2**63 - 1, -(2**63)]


def test_a_sample_may_be_named_by_a_text():
    a, b, again = (
        read_request(json.dumps(json.loads(body()) | {"parameters": {"sample_id": name}}).encode()).sample_id
        for name in ("a", "b", "a")
    )
    assert a == again != b


FAULTS = {
    "no json": (b"{", None, "JSON"),
    "no utf-8": (b"\xff\xfe{}", None, "JSON"),
    "a list": (b"[]", None, "a list"),
    "deep": (b"[" * 200_000, None, "JSON"),
    "a long number": (b'{"id": ' + b"9" * 5000 + b"}", None, "JSON"),
    "no inputs": (b'{"inputs": []}', None, "missing"),
    "inputs of numbers": (b'{"inputs": [1]}', None, "list of objects"),
    "a NaN of Python": (body(data=None)[:-3] + b', "data": [1,2,3,4,5,NaN]}]}', None, "JSON"),
    "no name": (body(name=""), None, "name"),
    "no data": (body(data=None), None, "no data"),
    "both": (body(parameters={"binary_data_size": 24}), None, "both"),
    "an unknown type": (body(datatype="FP31"), None, "FP31"),
    "a null": (body(data=[1, 2, 3, 4, 5, None]), None, "null"),
    "a truth value": (body(data=[1, 2, 3, 4, 5, True]), None, "truth"),
    "a text": (body(data=[1, 2, 3, 4, 5, "6"]), None, "a text"),
    "a fraction": (body(datatype="INT8", data=[1, 2, 3, 4, 5, 6.5]), None, "INT8"),
    "out of range": (body(datatype="UINT8", data=[1, 2, 3, 4, 5, 256]), None, "256"),
    "infinite": (body(data=[1, 2, 3, 4, 5, 1e39]), None, "sample 1"),
    "no float": (body(data=[1, 2, 3, 4, 5, 10**400]), None, "JSON"),
    "half a surrogate": (body(datatype="BYTES", shape=[1], data=["\ud800"]), None, "JSON"),
    "negative": (body(shape=[-2, -3]), None, "-2"),
    "a size of nothing": (body(shape=[0, 3], data=[]), None, "from 1"),
    "huge": (body(shape=[2**31 - 1] * 16), None, "shape"),
    "no axis": (body(shape=[], data=[]), None, "shape"),
    "many axes": (body(shape=[1] * 17, data=[1]), None, "shape"),
    "too few": (body(data=[1, 2]), None, "[2]"),
    "nested otherwise": (body(data=[[1, 2], [3, 4], [5, 6]]), None, "[3, 2]"),
    "ragged": (body(data=[[1, 2, 3], [4, 5]]), None, "nested"),
    "half nested": (body(data=[[1, 2, 3], 4, 5, 6]), None, "nested"),
    "nested deeper": (body(data=[[[1], [2], [3]], [[4], [5], [6]]]), None, "nested"),
    "twice": (json.dumps({"inputs": json.loads(body())["inputs"] * 2}).encode(), None, "twice"),
    "no length": (body(), "", "Inference-Header"),
    "a negative length": (body(), "-1", "Inference-Header"),
    "a length in other digits": (body(), "٣", "Inference-Header"),
    "a length beyond the body": (body(), "100000", "100000"),
    "a size without bytes": (body(data=None, parameters={"binary_data_size": 24}), None, "cut short"),
    "a size of other values": (*binary(b"\0" * 20), "24"),
    "a size below 0": (*binary(b"\0" * 24, parameters={"binary_data_size": -24}), "-24"),
    "a size that is true": (*binary(b"\0", parameters={"binary_data_size": True}), "True"),
    "bytes too many": (*binary(b"\0" * 24, b"more"), "4 bytes"),
    "bytes after JSON alone": (body() + b"more", str(len(body())), "4 bytes"),
    "a NaN": (*binary(np.array([0, 0, 0, 0, np.nan, 0], "<f4").tobytes()), "sample 1"),
    "no truth value": (*binary(b"\0\1\2\0\0\0", datatype="BOOL"), "0 or 1"),
    "a text cut short": (*binary(b"\5\0\0\0abc", datatype="BYTES", shape=[1]), "cut short"),
    "a length cut short": (*binary(b"\5\0\0", datatype="BYTES", shape=[1]), "cut short"),
    "a text too few": (*binary(b"\1\0\0\0a", datatype="BYTES", shape=[2]), "2 texts"),
    "a text too many": (*binary(b"\1\0\0\0a\0\0\0\0", datatype="BYTES", shape=[1]), "more"),
    "a text of bytes": (*binary(b"\1\0\0\0\xff", datatype="BYTES", shape=[1]), "UTF-8"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_faults_are_refused_in_a_sentence(fault):
    text, length, fact = fault
    with pytest.raises(InputError, match=f"(?i){re.escape(fact)}") as error:
        read_request(text, length)
    assert str(error.value).endswith(".")


WRONG = {
    "budget": [True, [], -1, 0, 1e400, "x" * 41],
    "deadline_ms": [0, -3, "5", True],
    "max_exit": [-1, 1.5, "1", True, 2**40],
    "sample_id": [1.5, True, [1], 2**63],
    "binary_data_output": [1, "true"],
    "budgets": ["60%"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, one) for name, found in WRONG.items() for one in found if one is not None]
)
def test_other_parameters_are_refused(name, value):
    text = json.dumps(json.loads(body()) | {"parameters": {name: value}}).encode()
    with pytest.raises(InputError, match=name if value != 1e400 else "JSON"):
        read_request(text)


@pytest.mark.parametrize(
    "outputs", [[{"name": "logits"}], [{}], {"name": "exit"}, [{"name": "exit", "parameters": {"classification": 3}}]]
)
def test_other_outputs_are_refused(outputs):
    with pytest.raises(InputError, match="output"):
        read_request(json.dumps(json.loads(body()) | {"outputs": outputs}).encode())


def test_a_budget_is_read_alone():
    assert read_budget(b'{"budget": "50%"}') == "50%" and read_budget(b'{"budget": 2}') == 2.0
    for wrong in (b"", b"{}", b'{"budget": []}', b'{"budget": 1, "more": 2}', b'"50%"', b'{"budget": -1}'):
        with pytest.raises(InputError):
            read_budget(wrong)


def test_what_a_model_takes_is_described():
    specs = [TensorSpec("ids", np.dtype("int64"), (None,)), TensorSpec("x", np.dtype("float32"), (3, 8))]
    found = model_metadata("m", "onnxruntime", specs, 10)
    assert found["inputs"] == [
        {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
        {"name": "x", "datatype": "FP32", "shape": [-1, 3, 8]},
    ]
    assert found["outputs"][1] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}


# --- any bytes --------------------------------------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))
ODD = JSON | st.sampled_from([2**31, 10**400, -1, "FP32", "BYTES", "x", [[1], 2]])
KEYS = ("name", "shape", "datatype", "data", "parameters")


@st.composite
def near_requests(draw):
    """Requests in which some parts are something else, with bytes behind them and some length."""
    tensor = json.loads(body())["inputs"][0] | draw(st.dictionaries(st.sampled_from(KEYS), ODD, max_size=2))
    if draw(st.booleans()):
        tensor.pop("data", None)
        tensor["parameters"] = {"binary_data_size": draw(st.integers(-1, 40) | JSON)}
    header = {"inputs": [tensor] * draw(st.integers(1, 2))}
    header |= draw(st.dictionaries(st.sampled_from(["parameters", "outputs", "id", "inputs"]), JSON, max_size=2))
    text = json.dumps(header).encode()
    length = draw(st.none() | st.just(str(len(text))) | st.integers(-1, 400).map(str) | st.text(max_size=4))
    return text + draw(st.binary(max_size=40)), length


@settings(max_examples=200)
@given(sent=near_requests() | st.tuples(st.binary(max_size=200), st.none() | st.text(max_size=4)))
@example(sent=(b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [[]]}]}', None))
@example(sent=(b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP16", "data": [70000]}]}', None))
def test_any_bytes_are_a_request_or_an_input_error(sent):
    try:
        found = read_request(*sent)
    except EenetError as error:
        assert isinstance(error, InputError) and len(str(error)) < 600
    else:
        write_response("m", found, ANSWERS)


def test_what_is_stated_costs_no_memory():
    size = 2**30
    text, length = binary(b"\0" * 16, shape=[size], parameters={"binary_data_size": 4 * size})
    many = b'{"inputs": [{"name": "x", "shape": [200000], "datatype": "FP32", "data": [' + b"1," * 199_999 + b"1]}]}"
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            read_request(text, length)
        with pytest.raises(ShapeError):
            read_request(body(shape=[size, 1024]))
        assert tracemalloc.get_traced_memory()[1] < 1e6
        read_request(many)
        assert tracemalloc.get_traced_memory()[1] < 30 * len(many)
    finally:
        tracemalloc.stop()
