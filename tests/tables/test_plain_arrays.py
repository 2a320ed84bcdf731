"""Files of arrays for `eenet run`: what damaged and foreign ones are answered with."""

import io
import re
import zipfile

import numpy as np
import pytest

from eenet.errors import InputError
from eenet.tables.files import read_arrays

GOOD = np.arange(24, dtype=np.float32).reshape(4, 6)


def test_files_that_hold_no_arrays(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("?")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("input.npy", b"text")
    for name, fact in (
        ("none.npy", "is missing"),
        ("pickled.npy", "cannot be read"),
        ("text.npy", "cannot be read"),
        ("other.npz", "cannot be read"),
    ):
        with pytest.raises(InputError, match=fact):
            read_arrays(tmp_path / name, "input")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
def test_damaged_files(save, tmp_path):
    file, path = io.BytesIO(), tmp_path / "inputs.npz"
    save(file, GOOD)
    content = file.getvalue()
    broken = [content[: len(content) * share // 8] for share in range(8)]
    if b"'descr'" in content:
        broken.append(content.replace(b"'descr'", b"(descr'"))
    if save is np.savez_compressed:
        broken.append(content[:60] + b"\xff" * 20 + content[80:])
        broken.append(re.sub(rb"(PK\x01\x02.{6})\x08", b"\\1\x63", content, flags=re.DOTALL))  # an unknown compression
    for damaged in broken:
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"input {re.escape(str(path))}.* cannot be read: ") as caught:
            read_arrays(path, "input")
        assert "\n" not in str(caught.value)
