"""Environment variables: what they mean, and what is refused."""

import os

import pytest

from eenet import environment
from eenet.errors import InputError


@pytest.mark.parametrize(("text", "wanted"), [("3", 3), (" 2 ", 2), ("", None), (None, None)])
def test_threads_are_a_whole_number_or_not_said(text, wanted, monkeypatch):
    monkeypatch.delenv("EENET_THREADS", raising=False)
    if text is not None:
        monkeypatch.setenv("EENET_THREADS", text)
    assert environment.threads() == wanted


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "99999999"])
def test_other_threads_are_refused_by_name(text, monkeypatch):
    monkeypatch.setenv("EENET_THREADS", text)
    with pytest.raises(InputError, match=f"EENET_THREADS '{text}'"):
        environment.threads()


def test_libraries_get_the_threads_unless_they_have_their_own(monkeypatch):
    monkeypatch.setenv("EENET_THREADS", "3")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    environment.limit_threads()
    assert [os.environ[f"{name}_NUM_THREADS"] for name in ("OMP", "OPENBLAS", "MKL")] == ["3", "3", "7"]


def test_folders(tmp_path, monkeypatch):
    for name in ("EENET_DATA", "EENET_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert environment.data_folder() is environment.cache_folder() is None
    monkeypatch.setenv("EENET_DATA", str(tmp_path))
    monkeypatch.setenv("EENET_CACHE", str(tmp_path / "new"))
    assert (environment.data_folder(), environment.cache_folder()) == (tmp_path, tmp_path / "new")
    monkeypatch.setenv("EENET_DATA", str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"EENET_DATA .*gone"):
        environment.data_folder()


def test_the_data_folder_is_for_recipes_that_need_one_and_an_argument_counts_more(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from eenet.experiments.recipes import RECIPES

    monkeypatch.setenv("EENET_DATA", str(tmp_path))
    needs, made = RECIPES["cifar10_resnet56_3"], RECIPES["digits_tiny"]
    assert (needs.root(None), made.root(None), needs.root(tmp_path / "other")) == (tmp_path, None, tmp_path / "other")
