"""The reader of pickled files: equal to Python's own on official files, and never runs what a file asks for."""

import os
import pickle
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written_data import pickled, write_cifar10, write_cifar100

from eenet.errors import DataError
from eenet.experiments.data.archives import read_pickled


def same(path: Path) -> None:
    """Compare with the slow twin, Python's own reader, on a file that the test has written."""
    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")  # numpy has moved
        expected = pickle.load(file, encoding="bytes")  # noqa: S301
    found = read_pickled(path)
    assert found.keys() == {key.decode() if isinstance(key, bytes) else key for key in expected}
    for key, value in expected.items():
        np.testing.assert_equal(found[key.decode() if isinstance(key, bytes) else key], value)


@pytest.mark.parametrize("name", ["cifar-10-batches-py/test_batch", "cifar-100-python/train", "cifar-100-python/meta"])
def test_official_files_are_read_as_python_reads_them(name: str, tmp_path: Path) -> None:
    same((write_cifar10 if "cifar-10-" in name else write_cifar100)(tmp_path) / name)


@pytest.mark.parametrize("protocol", [3, 4])
def test_files_written_anew_are_read_too(tmp_path: Path, protocol: int) -> None:
    batch = {
        b"data": np.arange(12, dtype=np.uint8).reshape(3, 4),
        b"labels": [0, 70_000, -1],
        "names": ["a", "b", None],
    }
    batch |= {
        "one": (1,),
        "two": (1, 2),
        "three": (1, 2, 3),
        "four": (1, 2, 3, 4),
        "none": (),
        "a": True,
        "b": (False,),
    }
    (tmp_path / "a").write_bytes(pickle.dumps(batch, protocol))
    same(tmp_path / "a")


class Malicious:
    """Makes a folder when unpickled by Python."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_a_file_asks_for_is_not_run(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "was run"
    content = pickle.dumps({"data": Malicious(target)}, protocol)
    pickle.loads(content)  # noqa: S301 - Python's own reader does run it
    target.rmdir()
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(
        DataError, match=r"a is refused: it asks for the function '(posix|nt)\.mkdir', .* It was not run"
    ):
        read_pickled(tmp_path / "a")
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x02}U\x01acnumpy\nndarray\nq\x00K\x01\x85Rs.", "another object than an array"),
        (b"\x80\x02K\x01.", "no dictionary"),
        (b"\x80\x02}q\x00K\x01b.", "no dictionary"),
        (b"\x80\x02(ccollections\nOrderedDict\no.", "the function 'collections.OrderedDict'"),
        (b"\x80\x02(K\x01i__main__\nThing\n.", "the instruction INST"),
        (b"\x80\x04\x88Q.", "the instruction BINPERSID"),
        (pickle.dumps({"data": np.zeros(3)}, 4), "an array of other numbers than bytes"),
        (pickle.dumps({"a": {"b": 1}}, 4), "a dictionary in a dictionary"),
        (pickle.dumps({"a": [1, [2]]}, 4), "a list of other things than numbers and texts"),
        (pickle.dumps({1: "a"}, 4), "a key that is no text"),
        (pickle.dumps({"a": ({(1, 2): 3},)}, 4), "a key that is no text"),
    ],
)
def test_refuses_every_other_instruction(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=f"a is refused: it asks for {said}"):
        read_pickled(tmp_path / "a")


def tuples(depth: int) -> bytes:
    """Instructions for a tuple in a tuple and so on."""
    return b")" + b"\x85" * depth


SHARED = b")" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(200))
"""Instructions for a tuple that has another one twice, and so on."""


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}" + tuples(100_000) + b"K\x01s.",  # as a key: Python's hash would use up the stack
        b"\x80\x02}" + SHARED + b"K\x01s.",  # or take for ever
        b"\x80\x02}U\x01a" + SHARED + b"s.",
        b"\x80\x02}U\x01a" + tuples(100_000) + b"s.",
        b"\x80\x02" + b"K\x01" * 100_000 + b"(t" * 100_000 + b".",
        b"\x80\x02}U\x01a]" + b"K\x01a" * 100_000 + b"K\x01as.",
        b"\x80\x02" + b"N" * 2_000_000 + b".",
        b"\x80\x02}q\x00U\x01ah\x00s.",  # a dictionary in itself
        b"\x80\x02}U\x01acnumpy\ndtype\nU\x02u1\x85R\x8a\x10" + b"\x7f" * 16 + b"\x85b" + b"s.",
    ],
    ids=[
        "deep key",
        "shared key",
        "shared value",
        "deep value",
        "many marks",
        "many appends",
        "long",
        "cycle",
        "odd array",
    ],
)
def test_hostile_files_are_answered_at_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    start = time.perf_counter()
    try:
        assert read_pickled(tmp_path / "a").keys() == {"a"}
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
    assert time.perf_counter() - start < 20


@given(data=st.data())
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_is_plain_values_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(pickled({b"data": np.zeros((2, 5), np.uint8), b"labels": [1, 300], b"more": {b"a": [b"b"]}}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a").write_bytes(content)
    try:
        found = read_pickled(tmp_path / "a")
    except DataError:
        return
    assert all(isinstance(key, str) for key in found)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = pickled({b"data": np.zeros((2, 5), np.uint8), b"labels": [1, 2]})
    for length in range(len(whole)):
        (tmp_path / "a").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a is (damaged|refused)"):
            read_pickled(tmp_path / "a")
    (tmp_path / "a").write_bytes(whole.replace(b"K\x02K\x05\x86", b"K\x02K\x06\x86"))
    with pytest.raises(DataError, match="a is damaged"):
        read_pickled(tmp_path / "a")
    with pytest.raises(DataError, match="b is missing"):
        read_pickled(tmp_path / "b")
