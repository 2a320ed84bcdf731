"""Bundles on the Hugging Face Hub: the real client against a hub of our own, and nothing that is not checked."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from replaying import quantile_policy
from small_bert import CLASSES, small_bert, small_bundle, small_preparation, small_texts
from small_hub import matching, small_hub

from eenet.errors import BundleError, InputError, RunError
from eenet.evaluation.saving import Saving
from eenet.experiments.recipes import RECIPES, build
from eenet.experiments.zoo import tiny_cnn
from eenet.models.structure import rebuild, structure_of
from eenet.running.bundle import Bundle

hub = pytest.importorskip("huggingface_hub")
NAME = "somebody/small-bert"
SAVING = Saving(
    cost_share=0.6,
    unit="ms",
    lost=0.4,
    lost_error=0.1,
    exits=(0.5, 0.3, 0.2),
    static_exit=0,
    static_lost=3.0,
    gain=(2.0, 1.0, 3.0),
    num_samples=500,
)


@pytest.fixture(scope="module")
def bundle():
    return small_bundle()


@pytest.fixture(scope="module")
def saved_once(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "bundle"
    bundle.save_pretrained(folder, name=NAME, saving=SAVING, budget="60%", data="Texts made up here.", license="mit")
    return folder


@pytest.fixture
def folder(saved_once, tmp_path):
    return shutil.copytree(saved_once, tmp_path / "copy")


@pytest.fixture(autouse=True)
def client(monkeypatch, tmp_path):
    """No progress bars, no cache but the test's own."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.utils.disable_progress_bars()


def same(one, other):
    texts = [text for text, _ in small_texts(24, seed=1)]
    inputs = small_preparation()(texts)
    a, b = one.adaptive()(inputs), other.adaptive()(inputs)
    return np.array_equal(a.exit_index, b.exit_index) and np.array_equal(a.log_probs, b.log_probs)


def test_what_was_saved_loads_without_a_function_that_builds_it(bundle, folder):
    loaded = Bundle.from_pretrained(folder)
    assert same(loaded, bundle) and not loaded.model.training
    assert (loaded.classes, loaded.costs) == (CLASSES, bundle.costs)
    texts = ["title of", "7 in train 190"]
    assert all(np.array_equal(loaded.preparation(texts)[name], one) for name, one in bundle.preparation(texts).items())
    assert not [path for path in folder.rglob("*") if path.suffix in (".py", ".pkl", ".bin", ".pt")]


def test_the_card_says_what_is_saved_what_exits_cost_and_how_to_load(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    header = card.split("---\n")[1]
    assert "library_name: eenet\n" in header and "pipeline_tag: text-classification\n" in header
    assert 'license: "mit"\n' in header and "- early-exit\n" in header
    assert SAVING.sentence in card and "500 samples" in card and "budget of 60% per sample" in card
    assert "| 0 | 1 | 40 | 50 |" in card and "Texts made up here." in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert f'Bundle.from_pretrained("{NAME}")' in code and len(code.splitlines()) <= 4


def test_a_card_without_measurements_says_so(tmp_path, bundle):
    Bundle(model=tiny_cnn(), policy=bundle.policy, info={"width": 8}).save_pretrained(tmp_path / "plain")
    card = (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")
    assert "**Not measured:**" in card and "not said by the author" in card and ", build)" in card
    assert "What leaving costs is not known" in card


def test_pushed_and_fetched_with_the_real_client(bundle, folder):
    bundle = replace(bundle, info=json.loads((folder / "info.json").read_text()))  # its structure is known
    with small_hub() as server:
        address = bundle.push_to_hub(NAME, saving=SAVING, endpoint=server.endpoint, token="t")
        held = server.repositories[NAME]
        assert address.endswith(server.commit(NAME))
        assert {"README.md", "manifest.json", "model.safetensors", "tokenizer/tokenizer.json"} <= held.keys()
        held |= {"modeling_evil.py": b"raise SystemExit", "weights.bin": b"pickle", ".gitattributes": b""}
        held["tokenizer/old.txt"] = b"left over"
        bundle.push_to_hub(NAME, endpoint=server.endpoint, token="t")
        assert "tokenizer/old.txt" not in held and "weights.bin" in held  # an older bundle goes, the rest stays
        loaded = Bundle.from_pretrained(NAME, lambda info: small_bert(), endpoint=server.endpoint)
        assert same(loaded, bundle)
        assert matching(server.asked, "GET */model.safetensors")
        assert not matching(server.asked, "GET */resolve/*evil.py") and not matching(server.asked, "* */resolve/*.bin")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: held.update({"tokenizer/added_tokens.json": b"{}"}), "tokenizer"),
        (lambda held: held.update({"inputs.json": held["inputs.json"] + b" "}), "inputs.json was changed"),
        (lambda held: held.pop("manifest.json"), "manifest"),
        (lambda held: held.update({"manifest.json": b'{"format": "eenet bundle", "version": 1}'}), "without checksums"),
        (lambda held: held.update({"model.safetensors": held["model.safetensors"][:-1] + b"!"}), "was changed"),
        (lambda held: unlist(held, "info.json"), "info.json is not in the manifest"),
        (lambda held: unlist(held, "inputs.json"), "inputs.json is not in the manifest"),
    ],
)
def test_what_was_changed_or_has_no_checksum_is_refused(folder, change, said):
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    change(files)
    with small_hub() as server:
        server.repositories[NAME] = files
        with pytest.raises(BundleError, match=said):
            Bundle.from_pretrained(NAME, endpoint=server.endpoint)


def unlist(held, name):
    manifest = json.loads(held["manifest.json"])
    del manifest["sha256"][name], manifest["checksum"]
    held["manifest.json"] = json.dumps(manifest).encode()


def test_a_repository_that_is_not_there_and_names_that_are_none_are_refused(tmp_path):
    with small_hub() as server:
        with pytest.raises(InputError, match="somebody/none"):
            Bundle.from_pretrained("somebody/none", endpoint=server.endpoint)
        with pytest.raises(InputError, match="neither a folder"):
            Bundle.from_pretrained(str(tmp_path / "no such folder"), endpoint=server.endpoint)
        with pytest.raises(BundleError, match="no such folder"):
            Bundle.from_pretrained(tmp_path / "missing", endpoint=server.endpoint)
        assert not matching(server.asked, "*folder*") and not matching(server.asked, "*missing*")
        endpoint = server.endpoint
    with pytest.raises(RunError, match="cannot be reached"):
        Bundle.from_pretrained("somebody/none", endpoint=endpoint)


def test_a_card_of_ones_own_is_replaced_with_the_bundle_and_other_files_are_not(bundle, folder):
    (folder / "README.md").write_text("edited")
    assert same(Bundle.from_pretrained(folder, lambda info: small_bert()), bundle)
    plain = Bundle(model=bundle.model, policy=bundle.policy, info={"recipe": "none"})
    plain.save_pretrained(folder)
    assert "library_name" in (folder / "README.md").read_text()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        plain.save_pretrained(folder)


def test_bundles_without_a_structure_need_what_builds_them(tmp_path):
    model = RECIPES["digits_tiny"].build().eval()
    policy = quantile_policy(np.random.randn(30, model.num_exits, 10), "max_prob")
    Bundle(model=model, policy=policy, info={"recipe": "digits_tiny", "seed": 0}).save_pretrained(tmp_path / "digits")
    with pytest.raises(InputError, match=r"build=eenet\.experiments\.recipes\.build"):
        Bundle.from_pretrained(tmp_path / "digits")
    assert Bundle.from_pretrained(tmp_path / "digits", build).info["recipe"] == "digits_tiny"


def test_a_structure_names_installed_classes_only(bundle, folder):
    structure = json.loads((folder / "info.json").read_text())["structure"]
    assert structure["library"] == "transformers" and "auto_map" not in structure["config"]
    evil = structure["config"] | {
        "auto_map": {"AutoConfig": "evil.Config"},
        "_attn_implementation": "evil/kernel",
        "attn_implementation": "evil/kernel",
    }
    again = rebuild(structure | {"config": evil})
    assert again.whole.model.config._attn_implementation == structure["attention"]
    assert {name: one.shape for name, one in again.state_dict().items()} == {
        name: one.shape for name, one in bundle.model.state_dict().items()
    }
    for change in (
        {"library": "os"},
        {"kind": "AutoModel"},
        {"attention": "evil/kernel"},
        {"config": evil | {"model_type": "evil"}},
        {"library": "timm", "name": "hf-hub:evil/model", "settings": {"num_classes": 2, "in_chans": 3}},
        {"exits": 3},
        {"config": structure["config"] | {"num_hidden_layers": "3"}},
        {"config": structure["config"] | {"hidden_size": 0}},
        {"config": structure["config"] | {"vocab_size": -1}},
        {"inputs": {"input_ids": [10**15], "attention_mask": [10**15]}},
    ):
        with pytest.raises(InputError):
            rebuild(structure | change)


def test_models_of_ones_own_have_no_structure():
    assert structure_of(tiny_cnn()) is None


@pytest.mark.slow
def test_models_of_timm_are_built_again():
    timm = pytest.importorskip("timm")
    from eenet import attach

    images = torch.randn(2, 1, 64, 64)
    model = attach(timm.create_model("resnet10t", num_classes=5, in_chans=1).eval(), images, exits=3).eval()
    structure = structure_of(model)
    assert structure["name"] == "resnet10t"
    again = rebuild(structure).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(again(images), model(images), strict=True))
