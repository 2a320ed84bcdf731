"""What travels from tier to tier: the state of the samples that stay, as bytes with a checksum; no code, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float32, Int

from eenet.errors import EenetError, InputError
from eenet.tables.tensors import from_bytes, to_bytes

Compression: TypeAlias = Literal["float16", "int8"]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)

_FORMAT = {"format": "eenet state", "version": 1}
_LARGEST = float(np.finfo(np.float16).max)
_STEPS = 255
_DEPTH = 64  # collections inside each other that a state may have
_WORDS = {"source": str, "policy": str, "engine": str, "exit": int, "num_exits": int}


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Samples on their way to the next tier.

    Attributes:
        source: Fingerprint of the model; empty where it is not known.
        policy: Fingerprint of the policy; empty where it is not known.
        engine: Kind of the engine whose state it is.
        exit: The last exit that was seen.
        num_exits: Of the model.
        ids: Of the samples.
        rows: Their places in the batch that the first tier was given.
        seen: What the exits said so far, ``[sample, seen, column]``; None where the policy reads the newest exit only.
        arrays: Of the state, batch first.
        form: How they form it.
    """

    source: str
    policy: str
    engine: str
    exit: int
    num_exits: int
    ids: Int[np.ndarray, " sample"]
    rows: Int[np.ndarray, " sample"]
    seen: Float32[np.ndarray, "sample seen column"] | None
    arrays: Sequence[np.ndarray]
    form: Any

    def to_bytes(self, compress: Compression | None = None) -> bytes:
        """Return all of it as bytes; see `Tier` for what ``compress`` does."""
        about = _FORMAT | {name: getattr(self, name) for name in _WORDS} | {"form": self.form}
        about["dtypes"] = [str(array.dtype) for array in self.arrays]
        named = {"ids": self.ids, "rows": self.rows}
        named |= {} if self.seen is None else {"seen": self.seen}
        for i, array in enumerate(self.arrays):
            named |= {f"state{i}{part}": value for part, value in _compressed(array, compress).items()}
        named["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
        return to_bytes(named)

    @classmethod
    def from_bytes(cls, content: bytes) -> Sent:
        """Read what `to_bytes` returned; everything is checked.

        Raises:
            InputError: It is damaged, of another version, or something else.
        """
        if not isinstance(content, bytes | bytearray | memoryview):
            raise InputError(
                f"state of type {type(content).__name__} cannot be read: it is bytes. Pass TierResult.state."
            )
        arrays = from_bytes(bytes(content), "state")
        try:
            about = json.loads(arrays.pop("about").tobytes())
            found = {name: about.get(name) for name in _FORMAT}
        except (KeyError, ValueError, AttributeError, RecursionError) as error:
            raise InputError(
                f"state of {len(content)} bytes does not fit: it is a safetensors file of something else. Pass "
                "TierResult.state."
            ) from error
        if found != _FORMAT:
            raise InputError(
                f"state of format {found['format']!r}, version {found['version']!r}, does not fit: this is version "
                f"{_FORMAT['version']}. Use one version of eenet on all tiers."
            )
        try:
            return cls._rebuilt(about, arrays)
        except EenetError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise InputError(f"state is damaged: {str(error).rstrip('.')}. Send it again.") from error

    @classmethod
    def _rebuilt(cls, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Sent:
        words = {name: about[name] for name in _WORDS}
        if wrong := [name for name, value in words.items() if type(value) is not _WORDS[name]]:
            raise ValueError(f"its {wrong[0]} is {words[wrong[0]]!r}")
        k, exits = words["exit"], words["num_exits"]
        if not 0 <= k < exits - 1:
            raise ValueError(f"exit {k} of {exits} is no place to go on from")
        _require_flat(about["form"])
        state = [_decompressed(arrays, f"state{i}", np.dtype(kind)) for i, kind in enumerate(about["dtypes"])]
        ids, rows, seen = arrays["ids"], arrays["rows"], arrays.get("seen")
        if ids.ndim != 1 or not len(ids) or rows.shape != ids.shape or {ids.dtype, rows.dtype} != {np.dtype(np.int64)}:
            raise ValueError(f"its ids are {ids.dtype} {ids.shape}, its rows {rows.dtype} {rows.shape}")
        if len(np.unique(rows)) != len(rows) or rows.min() < 0:
            raise ValueError("its rows are no places of different samples")
        if seen is not None and (seen.dtype != np.float32 or seen.shape[:2] != (len(ids), k + 1) or seen.ndim != 3):
            raise ValueError(f"what was seen is {seen.dtype} {seen.shape} for {len(ids)} samples and exit {k}")
        if seen is not None and not (seen < np.inf).all():
            raise ValueError("what was seen holds NaN or infinity")
        for array in state:
            if array.shape[:1] != ids.shape:
                raise ValueError(f"a tensor of shape {array.shape} is not of {len(ids)} samples")
        return cls(**words, ids=ids, rows=rows, seen=seen, arrays=state, form=about["form"])


def _require_flat(form: Any, depth: int = 0) -> None:  # noqa: ANN401 - of JSON
    """Refuse collections too deep inside each other: rebuilding them would end the process."""
    if depth > 2 * _DEPTH:
        raise ValueError(f"its form is more than {_DEPTH} deep")
    for one in form.values() if isinstance(form, dict) else form if isinstance(form, list) else ():
        _require_flat(one, depth + 1)


def _compressed(array: np.ndarray, compress: Compression | None) -> dict[str, np.ndarray]:
    """Return an array by parts; one that is not of floating point numbers, or not finite, stays as it is."""
    if compress is None or array.dtype.kind != "f" or array.itemsize <= 2 or not np.isfinite(array).all():
        return {"": array}
    if compress == "float16":
        return {".float16": np.clip(array, -_LARGEST, _LARGEST).astype(np.float16)}
    flat = array.reshape(len(array), -1).astype(np.float64)
    low, high = flat.min(axis=1, initial=np.inf), flat.max(axis=1, initial=-np.inf)
    step = np.where(high > low, (high - low) / _STEPS, 1.0)
    steps = np.rint((flat - low[:, None]) / step[:, None]).astype(np.uint8)
    return {".int8": steps.reshape(array.shape), ".range": np.stack([low, step], axis=1)}


def _decompressed(arrays: Mapping[str, np.ndarray], name: str, dtype: np.dtype[Any]) -> np.ndarray:
    if name in arrays:
        plain = arrays[name]
        if plain.dtype != dtype:
            raise ValueError(f"a tensor of {plain.dtype} is called {dtype}")
        return plain
    if dtype.kind != "f":
        raise ValueError(f"a tensor of {dtype} is missing")
    if f"{name}.float16" in arrays:
        return arrays[f"{name}.float16"].astype(dtype)
    steps, ends = arrays[f"{name}.int8"], arrays[f"{name}.range"].astype(np.float64)
    if ends.shape != (len(steps), 2) or steps.dtype != np.uint8:
        raise ValueError(f"a tensor of shape {steps.shape} has ranges {ends.shape}")
    with np.errstate(over="ignore"):
        reach = (ends[:, :1] + ends[:, 1:] * (0, _STEPS)).astype(dtype)
    if not np.isfinite(reach).all():
        raise ValueError("a tensor has ranges that are no finite numbers")
    low, step = (ends[:, i].reshape(-1, *[1] * (steps.ndim - 1)) for i in (0, 1))
    return (low + steps * step).astype(dtype)
