"""What the base class does for every scheduler: small tables are noticed, unsuited ones are known beforehand."""

import math
import warnings

import numpy as np
import pytest

from eenet.errors import InputError
from eenet.schedulers import (
    AutoScheduler,
    DeadlineScheduler,
    EENetScheduler,
    EeroScheduler,
    GeometricScheduler,
    PceeScheduler,
    StoppingScheduler,
    TransformedScheduler,
    certify,
    fit_ensemble,
)
from eenet.schedulers.base import folds_of
from eenet.schedulers.names import POLICIES, scheduler
from eenet.tables import ExitTable
from eenet.testing import synthetic_table

NESTED = DeadlineScheduler(
    scheduler=TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_ensemble), deadline=3.0
)


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"eenet_published"}))
def test_a_small_table_is_fitted_after_one_warning(name):
    (message,) = warned(lambda: scheduler(name, 0).fit(synthetic_table(49), budget="60%"))
    assert "49 samples" in message and "fewer than 50" in message


def test_the_warning_comes_once_however_deep_and_not_for_50_samples():
    assert len(warned(lambda: NESTED.sweep(synthetic_table(20)))) == 1
    assert not warned(lambda: NESTED.sweep(synthetic_table(50)))
    assert not warned(lambda: certify(GeometricScheduler(), synthetic_table(100), budget=2.0))


def tables():
    table = synthetic_table(60)
    plain = {"costs": table.costs, "utility": table.utility}
    columns = np.exp(table.seen())
    return {
        "labels": table,
        "utility": ExitTable(logits=table.logits, **plain),
        "features": ExitTable(features=columns, **plain),
        "named features": ExitTable(features=columns, feature_names=("max_prob", "margin", "a", "b", "c"), **plain),
    }


@pytest.mark.parametrize("kind", tables())
@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"eenet_published"}))
def test_unsuited_foretells_what_fitting_refuses(name, kind):
    table, one = tables()[kind], scheduler(name, 0)
    for asked in (one, DeadlineScheduler(scheduler=one, deadline=3.0)):
        if asked.unsuited(table):
            with pytest.raises(InputError):
                asked.fit(table, budget=2.0)
        else:
            asked.fit(table, budget=2.0)


def test_a_deadline_is_unsuited_where_costs_differ_by_sample():
    table = synthetic_table(60)
    by_sample = ExitTable(logits=table.logits, labels=table.labels, cost=table.leaving_costs)
    assert "costs every sample something else" in NESTED.unsuited(by_sample) and not NESTED.unsuited(table)


@pytest.mark.parametrize(
    ("make", "setting", "value"),
    [
        (StoppingScheduler, "folds", 1),
        *((StoppingScheduler, "ridge", value) for value in (0.0, math.inf, math.nan)),
        (AutoScheduler, "folds", 1),
        *((AutoScheduler, "tolerance", value) for value in (-1.0, math.nan)),
        (PceeScheduler, "bins", 0),
        *((EeroScheduler, "beta", value) for value in (-1.0, math.inf)),
        *((EENetScheduler, name, 0) for name in ("epochs", "restarts")),
        *((EENetScheduler, "learning_rate", value) for value in (-1.0, math.nan)),
        *((EENetScheduler, name, -1e-4) for name in ("beta", "alpha_cost", "weight_decay")),
        (EENetScheduler, "alpha_kl", math.inf),
    ],
)
def test_settings_outside_their_range_are_refused(make, setting, value):
    with pytest.raises(InputError, match=f"{setting} {value:g} cannot be used"):
        make(**{setting: value})


def test_folds_are_equal_and_follow_the_seed():
    fold = folds_of(np.arange(23), 5, seed=1)
    assert sorted(np.bincount(fold).tolist()) == [4, 4, 5, 5, 5]
    assert np.array_equal(fold, folds_of(np.arange(23), 5, seed=1))
    assert not np.array_equal(fold, folds_of(np.arange(23), 5, seed=2))
