"""Downloads, from a local address: checked, all or nothing, and only where asked for."""

import dataclasses
import hashlib
import tarfile
from pathlib import Path

import pytest
from written_data import write_cifar10, write_cifar100

from eenet.data import cifar10, cifar100, load_cifar10, load_cifar100
from eenet.data.download import Archive, fetch
from eenet.errors import DataError, RunError
from eenet.recipes import RECIPES


def packed(folder: Path) -> Archive:
    """Pack a folder and return where it is."""
    path = folder.parent / "packed.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, folder.name)
    return Archive(url=path.as_uri(), md5=hashlib.md5(path.read_bytes()).hexdigest(), folder=folder.name)


def test_missing_data_are_fetched_where_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for write, load, module in ((write_cifar10, load_cifar10, cifar10), (write_cifar100, load_cifar100, cifar100)):
        source = write(tmp_path / module.BINARY / "source", binary=True) / module.BINARY
        monkeypatch.setattr(module, "ARCHIVE", packed(source))
        root = tmp_path / "root"
        with pytest.raises(DataError, match="was expected, found"):
            load(root)
        assert len(load(root, download=True).train) == len(load(source).train)
        assert len(load(root).test) == len(load(source).test)
    assert {path.name for path in root.iterdir()} == {cifar10.BINARY, cifar100.BINARY}


def test_recipes_fetch_their_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_cifar10(tmp_path / "source", binary=True) / cifar10.BINARY
    monkeypatch.setattr(cifar10, "ARCHIVE", packed(source))
    recipe = RECIPES["cifar10-resnet56-6-paper"]
    recipe.download(tmp_path / "root")
    assert len(recipe.load_data(tmp_path / "root").train) == len(load_cifar10(source).train)


def test_a_folder_that_is_there_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert fetch(Archive(url="file:///no/such/file", md5="", folder="there"), tmp_path) == tmp_path / "there"


def test_nothing_is_left_of_a_file_that_is_another(tmp_path: Path) -> None:
    archive = packed(write_cifar10(tmp_path / "source", binary=True) / cifar10.BINARY)
    root = tmp_path / "root"
    with pytest.raises(DataError, match=r"is not the published file: its MD5 is .*, 0 was expected"):
        fetch(dataclasses.replace(archive, md5="0"), root)
    with pytest.raises(
        RunError, match=r"download of file:///no/such/file failed: .* Try again, or get the file by hand"
    ):
        fetch(dataclasses.replace(archive, url="file:///no/such/file"), root)
    assert [*root.iterdir()] == []


def test_refuses_archives_that_write_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    path = tmp_path / "bad.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "a", "../outside")
    bad = Archive(url=path.as_uri(), md5=hashlib.md5(path.read_bytes()).hexdigest(), folder="data")
    with pytest.raises(RunError, match=r"failed: it would write \.\./outside elsewhere"):
        fetch(bad, tmp_path / "root")
    assert not (tmp_path / "root" / "outside").exists() and not (tmp_path / "outside").exists()


def test_links_are_left_out(tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.mkdir()
    (source / "plain").write_text("x")
    (source / "link").symlink_to("/etc/passwd")
    unpacked = fetch(packed(source), tmp_path / "root")
    assert [path.name for path in unpacked.iterdir()] == ["plain"]
