"""A model with exits in Lightning: a module that trains all exits, and a callback that fits the policy at the end.

Run it with ``pip install "eenet[torch]" lightning scikit-learn`` and ``python lightning_exits.py``.
"""

from __future__ import annotations

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from eenet import AdaptiveModel, CostTable, MultiExitModel, StoppingScheduler, record, tiny_cnn
from eenet.experiments.data import load_digits
from eenet.training import MultiExitLoss, uniform_weights


class ExitsModule(lightning.LightningModule):
    """Trains every exit of a model at once."""

    def __init__(self, model: MultiExitModel, lr: float = 0.01) -> None:
        super().__init__()
        self.model, self.lr = model, lr
        self.loss = MultiExitLoss(weighting=uniform_weights)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Return the loss over all exits."""
        inputs, labels = batch
        loss = self.loss(self.model(inputs), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Log the accuracy of every exit."""
        inputs, labels = batch
        for k, logits in enumerate(self.model(inputs)):
            self.log(f"accuracy_{k}", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class FitPolicy(lightning.Callback):
    """When the training ends: records what the exits say about the calibration set, and fits where to leave.

    The calibration set must have no part in the training, nor in the test.
    """

    def __init__(self, calibration: DataLoader, costs: CostTable, budget: str) -> None:
        self.calibration, self.costs, self.budget = calibration, costs, budget
        self.adaptive: AdaptiveModel | None = None

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Fit the policy, and a dial for other budgets."""
        assert isinstance(pl_module, ExitsModule)
        if not trainer.is_global_zero:
            return
        model = pl_module.model.cpu().eval()
        table = record(model, self.calibration, split="calibration")
        dial = StoppingScheduler(seed=0).sweep(table, self.costs)
        self.adaptive = AdaptiveModel(model, dial.at(self.budget), self.costs, dial=dial)


def loader(dataset: object, *, shuffle: bool = False) -> DataLoader:
    """Return batches of some of the embedded digits."""
    inputs, labels = dataset.inputs(slice(None)), dataset.targets(slice(None))
    return DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=shuffle)


def main(epochs: int = 8) -> tuple[float, float]:
    """Train, fit, and run on the test set; return the accuracy there, and the cost as a share of the full model's."""
    lightning.seed_everything(0, verbose=False)
    data, model = load_digits(), tiny_cnn()
    costs = CostTable(cumulative=(1.0, 2.0, 3.0), unit="stages")  # or measure(...), see "Engines and their speed"
    policy = FitPolicy(loader(data.calibration), costs, budget="60%")
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[policy],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ExitsModule(model), loader(data.train, shuffle=True), loader(data.calibration))
    prediction = policy.adaptive.predict_all(loader(data.test))
    right = (prediction.labels == data.test.labels.numpy()).mean()
    return float(right), float(prediction.cost.mean() / costs.full)


if __name__ == "__main__":
    accuracy, share = main()
    print(f"accuracy {accuracy:.1%} at {share:.0%} of the cost of the full model")
