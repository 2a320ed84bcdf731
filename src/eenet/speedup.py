"""From a model and data to one that stops early, and what that saves, in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Int
from torch import nn
from torch.utils import _pytree as pytree

from eenet.errors import DataError, InputError
from eenet.evaluation import Saving, compare, saving
from eenet.models.attach import attach
from eenet.models.inputs import Inputs
from eenet.models.model import MultiExitModel
from eenet.report import comparison_page, write_page
from eenet.running import AdaptiveModel, Bundle, bench, measure, record
from eenet.running.benchmark import BenchReport
from eenet.running.engines import Engine, plain_model
from eenet.running.inputs import batches_of, joined, rows_of
from eenet.running.measuring import counted
from eenet.schedulers import AutoScheduler, GeometricScheduler
from eenet.schedulers.base import LEAST_SAMPLES
from eenet.tables.arrays import as_array, batch_size
from eenet.tables.checks import number
from eenet.tables.costs import BudgetLike, CostTable
from eenet.tables.table import ExitTable
from eenet.training.dataset import LabelledDataset
from eenet.training.fit import fit_exits
from eenet.training.samples import as_dataset
from eenet.training.settings import TrainSettings, attached_settings

_Part: TypeAlias = Any
"""Samples with labels: a `LabelledDataset`, or inputs and labels of any kind as a pair in memory."""

SHARES = (0.6, 0.2, 0.2)  # of the samples: to train on, for calibration, for testing
BATCH_SIZES, PASSES = (1, 32), 5  # timed
TIMED = 400  # test samples at most
_EXAMPLES = 32  # samples on which operations are counted
_EPOCHS = 10.0  # at most
_TRAINED_OPERATIONS = 1e13  # in training: some minutes on two cores
_TIMED_OPERATIONS = 1e11  # in a pass of timing


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class SpeedUp:
    """A model that stops early, and what that saves; printed, it is one sentence. Made by `speed_up`.

    Attributes:
        model: Ready to use.
        saving: What it saves and loses on the test samples.
        bench: The times behind it.
        trained: The model with exits, or the cascade, by itself.
        calibration: What its exits said about the samples that the policy was fitted on.
        test: What they said about the samples that it is judged on.
        budget: As it was asked for.
        timed: The inputs that were timed.
        seed: Of everything random.
    """

    model: AdaptiveModel
    saving: Saving
    bench: BenchReport
    trained: MultiExitModel | Engine
    calibration: ExitTable
    test: ExitTable
    budget: BudgetLike
    timed: Any
    seed: int

    def __repr__(self) -> str:
        """Return the sentence."""
        return self.saving.sentence

    def at(self, budget: BudgetLike) -> SpeedUp:
        """Return the same for another budget: nothing is trained or fitted again, the test samples are timed again.

        Raises:
            BudgetError: No number, a foreign unit, or below the cost of exit 0.
        """
        model = self.model.at(budget)
        timed = _timed(self.trained, model, self.timed, seed=self.seed, progress=False)
        return replace(self, model=model, budget=budget, bench=timed, saving=_saving(model, self.test, timed))

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write one HTML page: the sentence, ``auto`` beside ``max_prob`` and the bounds at equal cost, the times."""
        schedulers = {
            "auto": AutoScheduler(seed=self.seed),
            "max_prob": GeometricScheduler(confidence="max_prob", seed=self.seed),
        }
        comparison = compare(self.calibration, self.test, schedulers, [self.budget], seed=self.seed)
        page = comparison_page(
            comparison.to_dict(),
            title="What stopping early saves",
            verdict=self.saving.sentence,
            bench=self.bench.to_dict(),
        )
        write_page(path, page)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `Bundle`; its ``info`` has the modules that the exits read, to `attach` them to the model again.

        ``Bundle.load(path, lambda info: attach(make_model(), example_inputs, info["exits"])).adaptive()`` opens it.

        Raises:
            InputError: A cascade that is no model of PyTorch, or ``path`` is a folder with something else in it.
        """
        model = self.trained.as_model() if isinstance(self.trained, Engine) else self.trained
        names = getattr(model.whole, "names", None)
        info = {"saving": self.saving.to_dict()} | ({} if names is None else {"exits": list(names)})
        steered = self.model
        Bundle(model=model, policy=steered.policy, costs=steered.costs, info=info, dial=steered.dial).save(path)


def speed_up(
    model: nn.Module | Engine,
    data: Any,  # noqa: ANN401 - data of any form
    budget: BudgetLike = "60%",
    *,
    exits: int | Sequence[str] = 4,
    train: bool = True,
    freeze: bool = True,
    settings: TrainSettings | None = None,
    seed: int = 0,
    progress: bool = True,
) -> SpeedUp:
    """Make a model stop early and say what that saves: attach exits, train their heads, fit a policy, judge, time.

    The policy is fitted by `AutoScheduler` on the calibration samples, and judged and timed (at batch sizes 1 and 32)
    on the test samples, which took no part in anything before. Costs are operations, or times where these cannot be
    counted. Whether it pays is said first.

    Args:
        model: A classifier, which is given exits by `attach` and shares its weights with the result; a
            `MultiExitModel`; or a cascade or another engine, of which nothing is trained.
        data: Samples with labels, as `fit_exits` takes them: a `DataLoader`, a data set, a pair of arrays, ... They are
            split by ``seed``: 60 % to train on, 20 % for calibration, 20 % for testing; in halves where nothing is
            trained. Or ``(train, calibration, test)``, each of that kind; ``train`` may be None where nothing is.
            A cascade takes what `record` takes. The model must not have been trained on calibration or test samples.
        budget: Mean cost per sample: a number, with a unit, or a percentage of the original model.
        exits: How many, the original output included; or the modules after which they sit.
        train: Train the exits; False: they have been, as of a `MultiExitModel` that is ready.
        freeze: Only the early heads learn: the model's own weights stay as they are. False: it is trained further, in
            place.
        settings: How exits are trained; default: `attached_settings`, for 10 epochs or fewer, so that it takes minutes.
        seed: Of everything random, the split included.
        progress: Show bars on stderr.

    Raises:
        AttachError: The model cannot be given exits, with the reason.
        BudgetError: No number, a foreign unit, or below the cost of exit 0.
        DataError: Fewer than 50 samples for calibration or for testing; or samples that cannot be read.
        InputError: Two of the three parts are the same samples; settings or data that do not fit the model.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> block = lambda: torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> net = torch.nn.Sequential(*(block() for _ in range(4)), torch.nn.Linear(64, 10))
        >>> digits, labels = load_digits(return_X_y=True)
        >>> faster = speed_up(net, (digits.astype("float32") / 16, labels), freeze=False, progress=False)
        >>> faster.model(digits[:3].astype("float32") / 16).log_probs.shape
        (3, 10)
    """
    seed = int(number(seed, "seed", 0, 2**32 - 1, whole=True))
    trains = train and not isinstance(model, Engine)
    training, calibration, test = _parts(data, seed, in_memory=isinstance(model, Engine), trains=trains)
    example = _on_device(model, _first(calibration, _EXAMPLES))
    with_exits = _with_exits(model, example, exits, seed)
    costs = _costs(with_exits, example)
    asked = costs.budget(budget)
    if trains:
        assert isinstance(with_exits, MultiExitModel)
        chosen = settings or _settings(with_exits, example, len(training), costs.full, freeze=freeze, seed=seed)
        chosen = replace(chosen, heads_share=1.0) if freeze else chosen
        fit_exits(with_exits, training, chosen, progress=progress)
    tables = [
        record(with_exits, part, split=split, costs=costs, progress=progress)
        for split, part in (("calibration", calibration), ("test", test))
    ]
    dial = AutoScheduler(seed=seed).sweep(tables[0], costs, budgets=[asked])
    adaptive = AdaptiveModel(with_exits, dial.at(asked), costs, dial=dial)
    inputs = _first(test, _how_many(costs))
    timed = _timed(with_exits, adaptive, inputs, seed=seed, progress=progress)
    return SpeedUp(
        model=adaptive,
        saving=_saving(adaptive, tables[1], timed),
        bench=timed,
        trained=with_exits,
        calibration=tables[0],
        test=tables[1],
        budget=budget,
        timed=inputs,
        seed=seed,
    )


def split_rows(count: int, shares: Sequence[float], seed: int) -> list[Int[np.ndarray, " row"]]:
    """Return row numbers in parts of about these shares: each row is in one part, chosen by the seed."""
    ends = (count * np.cumsum(shares)[:-1] / sum(shares)).round().astype(int)
    return np.split(np.random.default_rng(seed).permutation(count), ends)


def _parts(data: Any, seed: int, *, in_memory: bool, trains: bool) -> tuple[_Part, _Part, _Part]:  # noqa: ANN401
    """Return what is trained on, what the policy is fitted on, and what it is judged on."""
    read = _read_pair if in_memory else as_dataset
    if isinstance(data, tuple) and len(data) == 3:
        training, *others = data
        if trains and training is None:
            raise InputError("data without samples to train on do not fit: heads have to learn. Pass some.")
        parts = [read(training) if trains else None, *map(read, others)]
        named = zip(("train", "calibration", "test"), data, parts, strict=True)
        for (one, raw, part), (other, raw_too, part_too) in combinations(named, 2):
            if part is not None and part_too is not None and (raw is raw_too or _same(part, part_too)):
                raise InputError(
                    f"data for {one} and {other} are the same samples: what was learnt on them cannot be judged on "
                    "them. Pass samples that no other part has."
                )
    else:
        whole = read(data)
        rows = split_rows(_count(whole), SHARES if trains else SHARES[1:], seed)
        parts = [None] * (not trains) + [_select(whole, some) for some in rows]
    for name, part in (("calibration", parts[1]), ("test", parts[2])):
        if (count := _count(part)) < LEAST_SAMPLES:
            raise DataError(
                f"data of {count} samples for {name} are too few: with fewer than {LEAST_SAMPLES}, nothing can be said. "
                f"Pass {LEAST_SAMPLES} or more for each of calibration and test; of samples in one piece, a fifth is "
                "for each of these."
            )
    return parts[0], parts[1], parts[2]


def _read_pair(data: Any) -> tuple[Any, np.ndarray]:  # noqa: ANN401
    """Return inputs of any kind and their labels, in memory: members of cascades may take what is no tensor."""
    found = [
        (rows_of(inputs, np.arange(batch_size(inputs))), as_array(labels))  # a copy: the next batch may overwrite it
        for inputs, labels in batches_of(data, _EXAMPLES, with_labels=True)
    ]
    if not found:
        raise DataError("data yield no batch: there is nothing to fit on. Pass some samples.")
    inputs, labels = zip(*found, strict=True)
    return joined(inputs), np.concatenate(labels)


def _count(part: _Part) -> int:
    return len(part) if isinstance(part, LabelledDataset) else len(part[1])


def _select(part: _Part, rows: np.ndarray) -> _Part:
    if isinstance(part, LabelledDataset):
        return part.select(torch.from_numpy(rows))
    return rows_of(part[0], rows), part[1][rows]


def _first(part: _Part, count: int) -> Any:  # noqa: ANN401 - inputs of any kind
    rows = slice(0, count)
    return part.inputs(rows) if isinstance(part, LabelledDataset) else rows_of(part[0], rows)


def _same(part: _Part, other: _Part) -> bool:
    both = isinstance(part, LabelledDataset) and isinstance(other, LabelledDataset)
    return both and part.fingerprint() == other.fingerprint()


def _on_device(model: nn.Module | Engine, inputs: Any) -> Any:  # noqa: ANN401
    """Return inputs where a model of PyTorch is; engines place them by themselves."""
    weight = None if isinstance(model, Engine) else next(model.parameters(), None)
    return inputs if weight is None else pytree.tree_map(lambda leaf: leaf.to(weight.device), inputs)


def _with_exits(
    model: nn.Module | Engine, example: Inputs, exits: int | Sequence[str], seed: int
) -> MultiExitModel | Engine:
    if isinstance(model, Engine):
        return model
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model of type {type(model).__name__} does not fit: a torch.nn.Module is given exits, several models are "
            "put one after another by cascade. Pass one of these."
        )
    try:
        return plain_model(model)
    except InputError:
        return attach(model, rows_of(example, slice(0, 2)), exits, seed=seed)


def _costs(model: MultiExitModel | Engine, example: Any) -> CostTable:  # noqa: ANN401
    """Return operations, or times at the larger batch size where they cannot be counted."""
    flops = counted(model, example)
    if flops is not None:
        return flops.costs()
    sizes = BATCH_SIZES[-1:]
    return measure(model, example, batch_sizes=sizes, passes=PASSES, progress=False).costs(batch_size=sizes[0])


def _settings(
    model: MultiExitModel, example: Inputs, samples: int, operations: float, *, freeze: bool, seed: int
) -> TrainSettings:
    """Return the usual settings, with as many epochs as take minutes: gradients of everything take twice a run more."""
    texts = any(not leaf.is_floating_point() for leaf in pytree.tree_leaves(example))
    each = operations * (1 if freeze else 3)
    return attached_settings(texts=texts, epochs=min(_EPOCHS, _TRAINED_OPERATIONS / (each * samples)), seed=seed)


def _how_many(costs: CostTable) -> int:
    """Return how many samples are timed."""
    most = _TIMED_OPERATIONS / costs.full if costs.unit == "FLOPs" else TIMED
    return int(min(TIMED, max(2 * BATCH_SIZES[-1], most)))


def _timed(
    trained: MultiExitModel | Engine,
    model: AdaptiveModel,
    inputs: Any,
    *,
    seed: int,
    progress: bool,  # noqa: ANN401
) -> BenchReport:
    return bench(trained, model.policy, inputs, batch_sizes=BATCH_SIZES, passes=PASSES, seed=seed, progress=progress)


def _saving(model: AdaptiveModel, test: ExitTable, timed: BenchReport) -> Saving:
    return saving(model.policy, test, speedups={row.batch_size: row.speedup for row in timed.rows})
