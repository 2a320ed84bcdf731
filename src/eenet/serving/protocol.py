"""The Open Inference Protocol (KServe v2) as pure functions: from bytes to arrays and back, in JSON and binary.

A request is a JSON object. With the binary tensor extension the numbers of a tensor follow the JSON as bytes, row by
row, little-endian; the header `LENGTH_HEADER` then says where the JSON ends. Nothing that a request says of its size is
believed: arrays are made of bytes that are there. Every fault is an `InputError`.

Source: Open Inference Protocol, https://github.com/kserve/open-inference-protocol, with its binary tensor extension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int

from eenet.errors import InputError
from eenet.imports import known
from eenet.running.engines.graphs import TensorSpec
from eenet.running.row_ids import row_ids
from eenet.serving.tensors import (
    LARGEST,
    Following,
    datatype_of,
    kind_of,
    object_of,
    read_tensor,
    text_of,
    to_bytes,
)

LENGTH_HEADER = "Inference-Header-Content-Length"
"""The header that says how many bytes of a body are JSON, where tensors follow as bytes."""
OUTPUTS = {"label": "INT64", "probabilities": "FP32", "exit": "INT64", "cost": "FP64", "score": "FP64"}
"""What an answer consists of, each with its datatype."""

_PARAMETERS = ("budget", "deadline_ms", "max_exit", "sample_id", "binary_data_output")


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """What a request asks.

    Attributes:
        inputs: By name, samples first; texts as strings.
        id: Comes back in the answer; empty where none was given.
        budget: Of these samples; None: that of the server.
        deadline_ms: After which an answer has no use; None: there is no such time.
        max_exit: The last exit that may be used; None: the last one of the model.
        sample_id: Of the first sample, the others are counted on; None: hashes of their content.
        outputs: Names of the wanted outputs, each with whether it is sent as bytes.
    """

    inputs: dict[str, np.ndarray]
    id: str = ""
    budget: str | float | None = None
    deadline_ms: float | None = None
    max_exit: int | None = None
    sample_id: int | None = None
    outputs: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(OUTPUTS, False))

    def sample_ids(self, count: int) -> Int[np.ndarray, " sample"] | None:
        """Return the ids of so many samples, None where their content is to be their name."""
        if self.sample_id is None:
            return None
        return np.int64(self.sample_id) + np.arange(count, dtype=np.int64)  # int64 counts around its end


# --- reading ----------------------------------------------------------------------------------------------------------


def read_object(body: bytes, what: str = "body") -> dict[str, Any]:
    """Return a JSON object; NaN and infinity, which are no JSON, are refused.

    Raises:
        InputError: It is something else.
    """
    try:
        found = json.loads(str(body, "utf-8"), parse_constant=_no_constant)
    except RecursionError as error:
        raise InputError(f"{what} is no JSON that can be read: it is nested too deeply. Send flat lists.") from error
    except ValueError as error:  # of the decoder of UTF-8, too, and of numbers of too many digits
        raise InputError(f"{what} is no JSON: {_line(error)}. Send a JSON object.") from error
    if not isinstance(found, dict):
        raise InputError(f"{what} is no JSON object: it is {kind_of(found)}. Send one, in braces.")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def read_request(body: bytes, header_length: str | None = None) -> InferRequest:
    """Return what the body of a request asks.

    Args:
        body: As it came.
        header_length: Value of `LENGTH_HEADER`; None where that was not sent: all is JSON.

    Raises:
        InputError: It is malformed, lies about a size, has bytes that belong to nothing, or asks for what there is not;
            or a number is NaN or infinite.
        ShapeError: A tensor has more or fewer numbers than its shape says.
    """
    length = _json_length(header_length, len(body))
    header, rest = _header(memoryview(body)[:length]), Following(memoryview(body)[length:])
    tensors = _listed(header, "inputs")
    if not tensors:
        raise InputError("inputs are missing: a request has at least one tensor. Send them as a list under 'inputs'.")
    inputs: dict[str, np.ndarray] = {}
    for tensor in tensors:
        name = text_of(tensor, "name", "input")
        if name in inputs:
            raise InputError(f"input {name!r} is there twice: a tensor has a name of its own. Send each once.")
        inputs[name] = read_tensor(name, tensor, rest)
    if rest.left:
        raise InputError(
            f"body has {rest.left} bytes too many: they belong to no tensor. State each tensor's binary_data_size."
        )
    identity, given = header.get("id", ""), _parameters(header)
    if not isinstance(identity, str):
        raise InputError(f"id is {kind_of(identity)}: what comes back in the answer is a text. Send it in quotes.")
    as_bytes = given.pop("binary_data_output", False)
    return InferRequest(inputs=inputs, id=identity, outputs=_read_outputs(header, as_bytes=as_bytes), **given)


def _header(text: memoryview) -> dict[str, Any]:
    """Return the JSON of a request, by a library that reads numbers ten times as fast as Python's own."""
    import orjson

    try:
        found = orjson.loads(text)
    except ValueError as error:
        raise InputError(f"request is no JSON: {_line(error)}. Send a JSON object.") from error
    if not isinstance(found, dict):
        raise InputError(f"request is no JSON object: it is {kind_of(found)}. Send one, in braces.")
    return found


def _json_length(stated: str | None, size: int) -> int:
    if stated is None:
        return size
    if not (stated.isascii() and stated.isdecimal() and len(stated) < 16 and int(stated) <= size):
        raise InputError(
            f"{LENGTH_HEADER} {stated[:40]!r} does not fit: the body has {size} bytes. State how many of them are JSON."
        )
    return int(stated)


def _read_outputs(header: Mapping[str, Any], *, as_bytes: bool) -> dict[str, bool]:
    """Return the names of the wanted outputs, each with whether it is sent as bytes; default: all."""
    wanted = {}
    for output in _listed(header, "outputs"):
        name = known("output", text_of(output, "name", "output"), OUTPUTS)
        parameters = object_of(output, "parameters", f"parameters of output {name!r}")
        _require_known(parameters, ("binary_data",), f"of output {name!r}")
        wanted[name] = _flag(parameters, "binary_data", default=as_bytes)
    return wanted or dict.fromkeys(OUTPUTS, as_bytes)


def _parameters(header: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a request asks beside its tensors, by names of `InferRequest`."""
    given = {name: value for name, value in object_of(header, "parameters", "parameters").items() if value is not None}
    _require_known(given, _PARAMETERS, "of the request")
    found = dict(given)
    if "binary_data_output" in given:
        found["binary_data_output"] = _flag(given, "binary_data_output", default=False)
    if "budget" in given:
        found["budget"] = _budget(given["budget"])
    if "deadline_ms" in given:
        found["deadline_ms"] = _positive(given["deadline_ms"], "deadline_ms")
    if "max_exit" in given and (type(given["max_exit"]) is not int or not 0 <= given["max_exit"] <= LARGEST):
        raise InputError(
            f"max_exit {str(given['max_exit'])[:40]!r} is no exit: these are counted from 0. Send a whole number."
        )
    if "sample_id" in given:
        found["sample_id"] = _sample_id(given["sample_id"])
    return found


def _budget(value: Any) -> str | float:  # noqa: ANN401 - of JSON
    if type(value) is str and len(value) <= 40:
        return value
    if type(value) in (int, float):
        return _positive(value, "budget")
    raise InputError(
        f"budget is {kind_of(value)}: a mean cost per sample is a number or a text such as '60%'. Send one."
    )


def read_budget(body: bytes) -> str | float:
    """Return the budget of ``{"budget": "50%"}``.

    Raises:
        InputError: The body is something else.
    """
    found = read_object(body)
    if set(found) != {"budget"}:
        raise InputError(f'body has the keys {sorted(found)[:5]}: one is needed. Send {{"budget": "50%"}}.')
    return _budget(found["budget"])


def _sample_id(value: Any) -> int:  # noqa: ANN401 - of JSON
    if type(value) is int and -(2**63) <= value < 2**63:
        return value
    if type(value) is str:
        return int(row_ids([value])[0])
    raise InputError(f"sample_id is {kind_of(value)}: samples are named by a whole number or a text. Send one.")


def _positive(value: Any, name: str) -> float:  # noqa: ANN401 - of JSON
    if type(value) not in (int, float) or not 0 < value < math.inf or value > 1e30:
        raise InputError(f"{name} {str(value)[:40]!r} is no positive number up to 1e30. Send one.")
    return float(value)


def _flag(values: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = values.get(name, default)
    if type(value) is not bool:
        raise InputError(f"{name} is {kind_of(value)}: it is true or false. Send one of these.")
    return value


def _require_known(given: Mapping[str, Any], names: Sequence[str], of: str) -> None:
    for name in given:
        if name not in names:
            known(f"parameter {of},", name[:40], names)


def _listed(header: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = header.get(name)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise InputError(f"{name} are no list of objects. Send them as [{{...}}].")
    return found


def _line(error: ValueError) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


# --- writing ----------------------------------------------------------------------------------------------------------


def write_request(
    inputs: Mapping[str, np.ndarray],
    *,
    parameters: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
    binary: bool = False,
) -> tuple[bytes, int | None]:
    """Return the body of a request, and how many bytes of it are JSON where tensors follow, both ways as bytes.

    Args:
        inputs: By name, samples first; texts as arrays of objects.
        parameters: See `InferRequest`.
        outputs: Names of the wanted ones; default: all.
        binary: Send numbers as bytes, and ask for such.
    """
    header: dict[str, Any] = {}
    parameters = {**(parameters or {}), **({"binary_data_output": True} if binary else {})}
    if parameters:
        header["parameters"] = parameters
    if outputs is not None:
        header["outputs"] = [{"name": name} for name in outputs]
    return _packed(header, "inputs", [(name, np.asarray(array), binary) for name, array in inputs.items()])


def write_response(model: str, request: InferRequest, outputs: Mapping[str, np.ndarray]) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how many bytes of it are JSON where tensors follow.

    Args:
        model: Its name.
        request: What was asked: its id comes back, and the outputs that it names.
        outputs: By name, samples first.
    """
    header = {"model_name": model, **({"id": request.id} if request.id else {})}
    wanted = [(name, outputs[name], binary) for name, binary in request.outputs.items()]
    return _packed(header, "outputs", wanted)


def _packed(
    header: dict[str, Any], key: str, tensors: Sequence[tuple[str, np.ndarray, bool]]
) -> tuple[bytes, int | None]:
    """Return the JSON of a message, with the tensors that are bytes after it."""
    import orjson

    described, parts = [], []
    for name, array, binary in tensors:
        one: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype_of(array.dtype)}
        if binary:
            parts.append(to_bytes(array))
            one["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            # numbers that JSON has not, such as an unknown cost, become null
            one["data"] = array.ravel().tolist() if array.dtype.kind in "OU" else np.ascontiguousarray(array).ravel()
        described.append(one)
    text = orjson.dumps({**header, key: described}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([text, *parts]), len(text) if parts else None


# --- what a model takes and returns -----------------------------------------------------------------------------------


def model_metadata(name: str, platform: str, inputs: Sequence[TensorSpec], num_classes: int | None) -> dict[str, Any]:
    """Return the protocol's description of a model; sizes that are left open are -1.

    Args:
        name: Of the model.
        platform: What runs it.
        inputs: What it takes.
        num_classes: How many there are, where known.
    """
    classes = -1 if num_classes is None else num_classes
    taken = [
        {
            "name": one.name,
            "datatype": datatype_of(one.dtype),
            "shape": [-1, *(-1 if size is None else size for size in one.shape)],
        }
        for one in inputs
    ]
    returned = [
        {"name": output, "datatype": datatype, "shape": [-1, classes] if output == "probabilities" else [-1]}
        for output, datatype in OUTPUTS.items()
    ]
    return {"name": name, "versions": ["1"], "platform": platform, "inputs": taken, "outputs": returned}
