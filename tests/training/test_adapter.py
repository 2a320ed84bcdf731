"""Loops of others: the Trainer of Hugging Face trains, evaluates and saves a model with exits."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_bert import small_bert, small_preparation, small_texts
from tests.training import resumable

from eenet.errors import InputError, ShapeError
from eenet.experiments.recipes import load_weights
from eenet.experiments.zoo import tiny_cnn
from eenet.models.model import MultiExitModel
from eenet.running.collator import Collator
from eenet.running.preparation import Preparation
from eenet.training import (
    MultiExitLoss,
    TrainerAdapter,
    distillation_loss,
    exit_losses,
    expected_exit_weights,
    fit_exits,
    sgd,
    uniform_weights,
)


def logits_of(exits: int = 3) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 5, generator=generator) for _ in range(exits)], torch.arange(8) % 5


def test_the_loss_is_the_weighted_sum_and_the_distillation() -> None:
    logits, targets = logits_of()
    wanted = exit_losses(logits, targets).mean() + 0.2 * distillation_loss(logits, 2.0)
    found = MultiExitLoss(weighting=uniform_weights, distillation=0.2, temperature=2.0)(logits, targets)
    torch.testing.assert_close(found, wanted)
    weights = expected_exit_weights(logits, targets)
    weighted = MultiExitLoss(weighting=uniform_weights, sample_weighting=expected_exit_weights, distillation=0)
    torch.testing.assert_close(weighted(logits, targets), exit_losses(logits, targets, weights).mean())
    with pytest.raises(ShapeError, match="weighting with 2 weights"):
        MultiExitLoss(weighting=lambda exits: (1.0, 1.0))(logits, targets)


def test_it_is_the_loss_of_fit_exits() -> None:
    """One step of plain gradient descent by hand moves the weights as `fit_exits` does."""
    data, settings = resumable.make_data(), dataclasses.replace(resumable.SETTINGS, augment=None)
    data = data.select(slice(0, 16))
    settings = dataclasses.replace(
        settings,
        epochs=1,
        batch_size=16,
        heads_share=0,
        warmup=0.0,
        momentum=0.0,
        optimiser=partial(sgd),
        weight_decay=0.0,
        distillation=0.3,
        distillation_from=0.0,
        schedule=lambda done: 1.0,
    )

    def plain() -> MultiExitModel:
        model = resumable.make_model()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return model

    trained, by_hand = plain(), plain()
    fit_exits(trained, data, settings, progress=False)
    by_hand.train()
    loss = MultiExitLoss(distillation=0.3)(by_hand(data.inputs(slice(None))), data.targets(slice(None)))
    loss.backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter.sub_(settings.lr * parameter.grad)
    for found, wanted in zip(trained.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_adapter_returns_the_loss_and_the_last_logits() -> None:
    model = tiny_cnn(width=4).eval()
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6)
    answer = TrainerAdapter(model)(inputs=images, labels=labels)
    logits = model(images)
    assert torch.equal(answer["logits"], logits[-1])
    assert torch.equal(answer["loss"], MultiExitLoss()(logits, labels))
    assert TrainerAdapter(model)(inputs=images).keys() == {"logits"}
    with pytest.raises(InputError, match="inputs are missing"):
        TrainerAdapter(model)(labels=labels)
    with pytest.raises(InputError, match=r"both given"):
        TrainerAdapter(model)(inputs=images, input_ids=labels)


def test_samples_become_batches_as_the_model_reads_them(tmp_path) -> None:
    how, samples = small_preparation(), [{"text": text, "label": label} for text, label in small_texts(5)]
    batch = Collator(preparation=how)(samples)
    wanted = how([one["text"] for one in samples])
    assert all(np.array_equal(batch[name].numpy(), wanted[name]) for name in wanted)
    assert batch["labels"].tolist() == [one["label"] for one in samples]
    pixels = Preparation(mean=(0.5,), std=(0.5,), size=(8, 8))
    from PIL import Image

    images = Collator(preparation=pixels, sample="image", named="pixel_values")([{"image": Image.new("L", (8, 8))}])
    assert images.keys() == {"pixel_values"} and images["pixel_values"].shape == (1, 1, 8, 8)
    with pytest.raises(InputError, match="samples with keys label"):
        Collator(preparation=how)([{"label": 1}])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_trainer_trains_evaluates_saves_and_what_it_saved_gives_the_same_outputs(tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    samples = [{"text": text, "label": label} for text, label in small_texts(64)]
    torch.manual_seed(0)
    adapter = TrainerAdapter(small_bert(), MultiExitLoss(weighting=uniform_weights))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        num_train_epochs=4,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        remove_unused_columns=False,
        report_to=[],
        logging_steps=4,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model=adapter,
        args=arguments,
        train_dataset=samples,
        eval_dataset=samples,
        data_collator=Collator(preparation=small_preparation()),
        compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()},
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.7 * before["eval_loss"] and after["eval_accuracy"] > 0.8
    trainer.save_model(str(tmp_path / "saved"))
    inputs = Collator(preparation=small_preparation())([{"text": one["text"]} for one in samples])
    again = TrainerAdapter(small_bert())
    again.load_state_dict(load_file(tmp_path / "saved" / "model.safetensors"))
    bare = small_bert()
    load_weights(bare, tmp_path / "saved" / "model.safetensors")  # also as the weights of the model itself
    with torch.no_grad():
        wanted = adapter.eval().model(inputs)
        for found in (again.eval().model(inputs), bare.eval()(inputs)):
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
