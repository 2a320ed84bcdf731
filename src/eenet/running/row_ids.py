"""Ids of samples that have no name: the same content, the same id, wherever and beside whatever it comes by."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, UInt64
from scipy import sparse

from eenet.running.inputs import Inputs
from eenet.tables.arrays import axes_of

_HALF = np.uint64(32)


def row_ids(inputs: Inputs) -> Int[np.ndarray, " sample"]:
    """Return a hash of every sample's content: of numbers, whatever their type, and of anything that has a `repr`.

    Numbers that are equal as float64 give equal ids, in arrays, frames and sparse matrices alike; which numbers of a
    row are zero makes no difference between the latter.

    Args:
        inputs: Samples first: an array, a sparse matrix, a frame, or a list, such as of texts.
    """
    if sparse.issparse(inputs):
        rows = inputs.tocsr()
        if not rows.has_canonical_format:  # a place may have several numbers, which add up
            rows = rows.copy()
            rows.sum_duplicates()
        terms = _bits(rows.data) * _odd(rows.shape[1])[rows.indices]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])  # around 2^64
        return np.asarray(sums[rows.indptr[1:]] - sums[rows.indptr[:-1]]).view(np.int64)
    if hasattr(inputs, "to_numpy") or (isinstance(inputs, list) and axes_of(inputs) is not None):
        inputs = inputs.to_numpy() if hasattr(inputs, "to_numpy") else np.asarray(inputs)
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "fiub":
        values = inputs.reshape(len(inputs), -1)
        return np.asarray(_bits(values) @ _odd(values.shape[1])).view(np.int64)
    rows = inputs.tolist() if isinstance(inputs, np.ndarray) else inputs
    digests = b"".join(hashlib.blake2b(repr(row).encode(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype=np.int64)


def _bits(values: Float[np.ndarray, "*shape"] | Int[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """Return numbers as bits, 0 for 0 and -0, one NaN for all; short numbers differ in the lower half too."""
    plain = np.add(values, 0.0, dtype=np.float64, order="C")
    plain[np.isnan(plain)] = np.nan
    bits = plain.view(np.uint64)
    return np.asarray(bits ^ (bits >> _HALF))


@lru_cache(maxsize=8)
def _odd(count: int) -> UInt64[np.ndarray, " column"]:
    """Return one fixed odd number per column."""
    return np.asarray(np.random.PCG64(0).random_raw(count) | np.uint64(1))
