"""What the paper reports, as data: its tables 1 to 3, and which experiment of ours stands beside each.

Source:
    Ilhan et al., Adaptive Deep Neural Network Inference Optimization with EENet, WACV 2024, pages 1373-1382.
"""

from __future__ import annotations

from dataclasses import dataclass

METHODS = ("BranchyNet", "MSDNet", "PABEE", "MAML-stop", "EENet")
"""The policies that the paper compares, in its order."""


@dataclass(frozen=True)
class Budgeted:
    """A row of the paper's tables.

    Attributes:
        budget: Mean latency asked for, in ms per sample.
        quality: Accuracy or mean IoU of each of `METHODS`, in percent; None where the paper has none.
        spread: Of EENet's, over its runs.
    """

    budget: float
    quality: tuple[float | None, ...]
    spread: float


@dataclass(frozen=True, kw_only=True)
class PaperExperiment:
    """An experiment of the paper.

    Attributes:
        title: Data, model, number of exits.
        ours: Name of the experiment of ours beside it.
        differs: What is not the same there.
        measure: What is counted, in percent.
        base: That of the model without exits.
        latency: Of that model, in ms.
        rows: At its budgets.
        parameters: In millions, up to each exit and of the model without exits, from its table 3.
        times: In ms, likewise.
        scheduler: What its scheduler adds per exit, likewise.
    """

    title: str
    ours: str
    differs: str
    measure: str = "accuracy"
    base: float
    latency: float
    rows: tuple[Budgeted, ...]
    parameters: tuple[float, ...]
    times: tuple[float, ...]
    scheduler: str

    def share(self, row: Budgeted) -> float:
        """Return a budget as a share of the latency of the model without exits."""
        return row.budget / self.latency


PAPER = (
    PaperExperiment(
        title="CIFAR-10, ResNet56, 3 exits",
        ours="cifar10-resnet56-3",
        differs="images re-compressed as JPEG, published weights fine-tuned with exits at other places",
        base=93.90,
        latency=4.70,
        rows=(
            Budgeted(3.50, (93.76, 93.81, 93.69, None, 93.84), 0.05),
            Budgeted(3.00, (92.57, 92.79, 91.85, None, 92.90), 0.13),
            Budgeted(2.50, (87.55, 88.76, 84.39, 88.67, 88.90), 0.19),
        ),
        parameters=(0.06, 0.28, 0.96, 0.86),
        times=(2.31, 4.15, 4.93, 4.77),
        scheduler="< 1 K parameters, 0.01 ms",
    ),
    PaperExperiment(
        title="CIFAR-100, DenseNet121, 4 exits",
        ours="cifar100-densenet121",
        differs="a fifth of the paper's epochs",
        base=75.08,
        latency=10.20,
        rows=(
            Budgeted(7.50, (73.96, 74.01, 73.68, None, 74.08), 0.13),
            Budgeted(6.75, (71.65, 71.99, 68.10, None, 72.12), 0.20),
            Budgeted(6.00, (68.13, 68.70, 61.13, 69.00, 69.57), 0.22),
        ),
        parameters=(0.06, 0.25, 0.86, 1.17, 1.04),
        times=(2.49, 5.30, 9.53, 10.20, 10.03),
        scheduler="5.3 to 5.6 K parameters, 0.08 ms",
    ),
    PaperExperiment(
        title="ImageNet, MSDNet35, 5 exits",
        ours="imagenet-msdnet35",
        differs="a twentieth of the paper's epochs",
        base=74.60,
        latency=195.14,
        rows=(
            Budgeted(125.0, (74.10, 74.13, 74.05, None, 74.18), 0.13),
            Budgeted(100.0, (72.44, 72.70, 72.40, None, 72.75), 0.11),
            Budgeted(75.0, (69.32, 69.76, 68.13, 69.55, 69.88), 0.15),
        ),
        parameters=(8.76, 20.15, 31.73, 41.86, 62.31, 58.70),
        times=(58.95, 122.99, 155.49, 177.69, 194.31, 188.49),
        scheduler="0.25 M parameters, 0.72 ms",
    ),
    PaperExperiment(
        title="Cityscapes, HRNet-W48, 3 exits",
        ours="camvid-hrnet",
        differs="CamVid in place of Cityscapes, at a quarter of the resolution; HRNet-W18-small-v2 with a narrow "
        "opening, from scratch. Its exits stand at the paper's shares of the operations, 3.7 % and 15 %; by parameters "
        "(1.6 M, 17 M, 66 M) the paper's stand after its second and third stage",
        measure="mean IoU",
        base=80.90,
        latency=131.60,
        rows=(
            Budgeted(100.0, (79.22, 78.75, 72.20, None, 80.03), 0.21),
            Budgeted(50.0, (75.54, 75.50, 70.09, None, 76.90), 0.17),
            Budgeted(15.0, (68.12, 68.35, 63.95, 65.76, 70.30), 0.35),
        ),
        parameters=(1.59, 17.14, 65.96, 63.60),
        times=(4.80, 19.17, 138.05, 131.60),
        scheduler="< 1 K parameters, 1.2 ms",
    ),
    PaperExperiment(
        title="SST-2, BERT-base, 4 exits",
        ours="sst2-bert",
        differs="MiniLM (6 layers, hidden size 384) in place of BERT-base",
        base=92.36,
        latency=189.93,
        rows=(
            Budgeted(150.0, (92.14, 92.17, 92.05, None, 92.25), 0.03),
            Budgeted(125.0, (90.86, 91.00, 90.75, None, 92.09), 0.05),
            Budgeted(100.0, (87.66, 87.71, 86.99, 88.15, 91.58), 0.60),
        ),
        parameters=(45.69, 67.55, 89.40, 111.26, 109.90),
        times=(51.04, 91.35, 148.13, 188.90, 183.45),
        scheduler="< 200 parameters, 0.01 ms",
    ),
    PaperExperiment(
        title="AG News, BERT-base, 4 exits",
        ours="agnews-bert",
        differs="MiniLM (6 layers, hidden size 384) in place of BERT-base; a part of the training set",
        base=93.98,
        latency=189.93,
        rows=(
            Budgeted(150.0, (93.20, 93.17, 93.15, None, 93.85), 0.01),
            Budgeted(125.0, (92.95, 92.98, 92.57, None, 93.75), 0.11),
            Budgeted(100.0, (85.58, 84.93, 85.22, 93.00, 93.45), 0.09),
        ),
        parameters=(45.69, 67.55, 89.40, 111.26, 109.90),
        times=(51.04, 91.35, 148.13, 188.90, 183.45),
        scheduler="< 200 parameters, 0.01 ms",
    ),
)
