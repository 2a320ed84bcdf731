"""From a model and data to one that stops early, and what that saves, in one call."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

from torch import nn
from torch.utils import _pytree as pytree

from eenet.errors import InputError
from eenet.evaluation import Saving, compare, saving
from eenet.models.attach import attach
from eenet.models.inputs import Inputs, unwrapped
from eenet.models.model import MultiExitModel
from eenet.report import comparison_page, write_page
from eenet.running import AdaptiveModel, Bundle, bench, measure, record
from eenet.running.benchmark import BenchReport
from eenet.running.engines import Engine
from eenet.running.inputs import rows_of
from eenet.running.measuring import counted
from eenet.schedulers import AutoScheduler, GeometricScheduler
from eenet.speedup.parts import first_of, parts_of
from eenet.tables.checks import number
from eenet.tables.costs import BudgetLike, CostTable, unit_factor
from eenet.tables.table import ExitTable
from eenet.training.fit import fit_exits
from eenet.training.settings import TrainSettings, attached_settings

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
        judged = _judged(self.trained, model, self.test, self.timed, seed=self.seed, progress=False)
        return replace(self, model=model, budget=budget, **judged)

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
    model: object,
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
        >>> import torch
        >>> from sklearn.datasets import load_digits
        >>> block = lambda: torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> net = torch.nn.Sequential(*(block() for _ in range(4)), torch.nn.Linear(64, 10))
        >>> digits, labels = load_digits(return_X_y=True)
        >>> faster = speed_up(net, (digits.astype("float32") / 16, labels), freeze=False, progress=False)
        >>> faster.model(digits[:3].astype("float32") / 16).log_probs.shape
        (3, 10)
    """
    seed = int(number(seed, "seed", 0, 2**32 - 1, whole=True))
    model = _checked(model, train)
    with _flags_kept(model):
        trains = train and not isinstance(model, Engine)
        training, calibration, test = parts_of(data, seed, in_memory=isinstance(model, Engine), trains=trains)
        example = _on_device(model, first_of(calibration, _EXAMPLES))
        with_exits: MultiExitModel | Engine
        if isinstance(model, MultiExitModel | Engine):
            with_exits = model
        else:
            with_exits = attach(model, rows_of(example, slice(0, 2)), exits, seed=seed)
        costs = _costs(with_exits, example)
        asked = costs.budget(budget)
        if trains:
            assert isinstance(with_exits, MultiExitModel)
            chosen = settings or _settings(example, len(training), costs.full, freeze=freeze, seed=seed)
            chosen = replace(chosen, heads_share=1.0) if freeze else chosen
            fit_exits(with_exits, training, chosen, progress=progress)
        tables = [
            record(with_exits, part, split=split, costs=costs, progress=progress)
            for split, part in (("calibration", calibration), ("test", test))
        ]
        dial = AutoScheduler(seed=seed).sweep(tables[0], costs, budgets=[asked])
        adaptive = AdaptiveModel(with_exits, dial.at(asked), costs, dial=dial)
        inputs = first_of(test, samples_to_time(costs))
        return SpeedUp(
            model=adaptive,
            trained=with_exits,
            calibration=tables[0],
            test=tables[1],
            budget=budget,
            timed=inputs,
            seed=seed,
            **_judged(with_exits, adaptive, tables[1], inputs, seed=seed, progress=progress),
        )


@contextmanager
def _flags_kept(model: nn.Module | Engine) -> Iterator[None]:
    """Restore afterwards which modules are in training mode: what was trained is in evaluation mode."""
    flags = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def samples_to_time(costs: CostTable) -> int:
    """Return how many samples a pass of timing has: fewer of a large model, so that it takes seconds."""
    factor = unit_factor("FLOPs", costs.unit)
    most = TIMED if factor is None else _TIMED_OPERATIONS * factor / costs.full
    return int(min(TIMED, max(2 * BATCH_SIZES[-1], most)))


def _on_device(model: nn.Module | Engine, inputs: Any) -> Any:  # noqa: ANN401
    """Return inputs where a model of PyTorch is; engines place them by themselves."""
    weight = None if isinstance(model, Engine) else next(model.parameters(), None)
    return inputs if weight is None else pytree.tree_map(lambda leaf: leaf.to(weight.device), inputs)


def _checked(model: object, train: bool) -> nn.Module | Engine:
    """Return a model without what is wrapped around it; refuse what is none, and exits that would learn nothing."""
    if not isinstance(model, Engine | nn.Module):
        raise InputError(
            f"model of type {type(model).__name__} does not fit: a torch.nn.Module is given exits. Pass one; several "
            "models, or those of other libraries, as a cascade."
        )
    if isinstance(model, nn.Module):
        model = unwrapped(model)
    if not train and not isinstance(model, MultiExitModel | Engine):
        raise InputError(
            f"train=False does not fit: {type(model).__name__} has no exits yet, and those that it is given have "
            "learnt nothing. Leave train out, or pass a MultiExitModel."
        )
    return model


def _costs(model: MultiExitModel | Engine, example: Any) -> CostTable:  # noqa: ANN401
    """Return operations, or times at the larger batch size where they cannot be counted."""
    flops = counted(model, example)
    if flops is not None:
        return flops.costs()
    sizes = BATCH_SIZES[-1:]
    return measure(model, example, batch_sizes=sizes, passes=PASSES, progress=False).costs(batch_size=sizes[0])


def _settings(example: Inputs, samples: int, operations: float, *, freeze: bool, seed: int) -> TrainSettings:
    """Return the usual settings, with as many epochs as take minutes: gradients of everything take twice a run more."""
    texts = any(not leaf.is_floating_point() for leaf in pytree.tree_leaves(example))
    each = operations * (1 if freeze else 3)
    return attached_settings(texts=texts, epochs=min(_EPOCHS, _TRAINED_OPERATIONS / (each * samples)), seed=seed)


def _judged(
    trained: MultiExitModel | Engine,
    model: AdaptiveModel,
    test: ExitTable,
    timed: Any,  # noqa: ANN401
    *,
    seed: int,
    progress: bool,
) -> dict[str, Any]:
    """Return the times and the saving, as attributes of a `SpeedUp`."""
    times = bench(trained, model.policy, timed, batch_sizes=BATCH_SIZES, passes=PASSES, seed=seed, progress=progress)
    speedups = {row.batch_size: row.speedup for row in times.rows}
    return {"bench": times, "saving": saving(model.policy, test, speedups=speedups)}
