"""Texts and pictures to labels in one call: as the model with the policy says, from bundles and from exports."""

import exporting
import numpy as np
import pytest
import torch
from PIL import Image
from replaying import quantile_policy
from small_bert import CLASSES, COSTS, small_bert, small_bundle, small_preparation, small_texts

from eenet import AdaptiveModel, AdaptivePipeline
from eenet.errors import DataError, InputError
from eenet.experiments.zoo import tiny_cnn
from eenet.running.bundle import Bundle
from eenet.running.exports import open_export
from eenet.running.pipeline import ranked
from eenet.running.preparation import Preparation


@pytest.fixture(scope="module")
def texts():
    return AdaptivePipeline(small_bundle())


@pytest.fixture(scope="module")
def pictures():
    torch.manual_seed(0)
    model = tiny_cnn(width=4).eval()
    how = Preparation(mean=(0.5,), std=(0.25,), size=(8, 8))
    policy = quantile_policy(np.random.default_rng(0).standard_normal((60, 3, 10)), "max_prob")
    return AdaptivePipeline(Bundle(model=model, policy=policy, costs=COSTS, preparation=how))


def test_answers_are_those_of_the_model_and_its_policy(texts):
    given = [text for text, _ in small_texts(20, seed=2)]
    answers = texts(given, batch_size=3)
    wanted = texts.adaptive.predict_all([texts.preparation(given)])
    assert [one["exit"] for one in answers] == wanted.exit_index.tolist()
    assert [one["label"] for one in answers] == [CLASSES[k] for k in wanted.labels]
    assert [one["score"] for one in answers] == pytest.approx(np.exp(wanted.log_probs.max(axis=1)).tolist(), abs=1e-5)
    assert [one["cost"] for one in answers] == [COSTS.cumulative[k] for k in wanted.exit_index]


def test_one_text_and_several_have_the_forms_of_transformers(texts):
    assert texts("title of") == texts(["title of"])
    two = texts("title of", top_k=2)
    assert [one["label"] for one in two] in ([*CLASSES], [*reversed(CLASSES)])
    assert two[0]["score"] >= two[1]["score"] and sum(one["score"] for one in two) == pytest.approx(1)
    assert texts(["title of", "7"], top_k=1) == [[one] for one in texts(["title of", "7"])]
    assert texts([]) == [] and len(texts("title of", top_k=99)) == 2


def test_another_budget():
    cheap = AdaptivePipeline(small_bundle(), budget=1.6)
    given = [text for text, _ in small_texts(20)]
    wanted = small_bundle().adaptive().at(1.6)(small_preparation()(given))
    assert [one["exit"] for one in cheap(given)] == wanted.exit_index.tolist()


def test_pictures_as_files_images_and_lists(pictures, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    image, path = Image.fromarray(pixels), tmp_path / "one.png"
    image.save(path)
    answers = pictures([str(path), path, image, image.convert("RGB").convert("L")])
    assert answers == [answers[0]] * 4 and answers[0]["label"].isdigit()
    wanted = pictures.adaptive(pictures.preparation(pixels[None, None]))
    assert answers[0]["label"] == str(wanted.labels[0])
    assert image.size == (8, 8) and np.array_equal(np.asarray(image), pixels)  # still open
    with pytest.raises(DataError, match=r"none\.png is missing"):
        pictures(tmp_path / "none.png")


def test_an_export_by_its_folder() -> None:
    path = exporting.exported("onnxruntime").path
    pixels = np.random.default_rng(0).integers(0, 256, (7, 1, 8, 8), dtype=np.uint8)
    answers = AdaptivePipeline(path)([Image.fromarray(one[0]) for one in pixels])
    opened = open_export(path)
    wanted = AdaptiveModel(opened.engine, opened.policy, opened.costs)(opened.prepare(pixels))
    assert [one["label"] for one in answers] == [exporting.CLASSES[k] for k in wanted.labels]
    assert [one["exit"] for one in answers] == wanted.exit_index.tolist()
    assert [one["cost"] for one in answers] == wanted.cost.tolist()


def test_a_model_that_does_not_say_how_inputs_are_made_is_refused(texts):
    plain = Bundle(model=small_bert(), policy=texts.adaptive.policy)
    with pytest.raises(InputError, match="preparation is missing"):
        AdaptivePipeline(plain)
    assert AdaptivePipeline(plain, texts.preparation, CLASSES)("title")[0]["cost"] is None


@pytest.mark.parametrize("given", [3, ["title", 3], [None]])
def test_what_is_no_text_is_refused(texts, given):
    with pytest.raises(InputError, match="the model reads texts"):
        texts(given)


@pytest.mark.parametrize("classes", [["one"], ["one", "two", "three"]])
def test_names_that_are_not_one_for_each_class_are_refused(classes):
    with pytest.raises(InputError, match=f"classes of {len(classes)} names"):
        AdaptivePipeline(small_bundle(), classes=classes)("title of")


def test_what_is_no_model_is_refused(unchecked):
    with pytest.raises(InputError, match="model of type int does not fit"):
        AdaptivePipeline(3)
    with pytest.raises(InputError, match="top_k 0"):
        AdaptivePipeline(small_bundle())("title", top_k=0)


def test_classes_are_ranked_by_probability_the_first_of_equals_first():
    log_probs = np.log(np.float32([0.2, 0.3, 0.2, 0.3]))
    assert [k for k, _, _ in ranked(log_probs, None, 3)] == [1, 3, 0]
    assert ranked(log_probs, "abcd")[0][1:] == ("b", pytest.approx(0.3))
