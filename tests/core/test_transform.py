"""Transforms and the tables seen through them."""

import math

import pytest
import torch

from eenet.core.costs import CostTable
from eenet.core.table import ExitTable
from eenet.core.transform import Transform
from eenet.errors import InputError, TableError
from eenet.testing import synthetic_table


class Mean(Transform):
    """The normalised geometric mean of all exits seen."""

    def forward(self, seen):
        return torch.log_softmax(seen.mean(dim=1), dim=1)


class Flat(Transform):
    """Knows nothing."""

    def forward(self, seen):
        return torch.full_like(seen[:, -1], -math.log(seen.shape[2]))


def test_history_by_hand():
    # two classes: the log-odds of a geometric mean are the mean of the log-odds
    seen = torch.log_softmax(torch.tensor([[[2.0, 0.0], [0.0, 4.0], [3.0, 0.0]]]), dim=2)
    history = Mean().history(seen)
    assert (history[0, :, 0] - history[0, :, 1]).tolist() == pytest.approx([2.0, -1.0, 1 / 3])
    assert torch.allclose(history.exp().sum(dim=2), torch.ones(1, 3))


def test_what_a_table_shows_through_a_transform():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 4.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 1.0], [9.0, 0.0]]])
    table = ExitTable(logits=logits, labels=torch.tensor([0, 1]), costs=CostTable((1.0, 2.0, 3.0), "ms"), split="val")
    mean = Mean()
    seen = table.transformed(mean)
    assert table.utility.tolist() == [[1, 0, 1], [1, 1, 0]]
    assert seen.utility.tolist() == [[1, 0, 1], [1, 1, 0]]
    assert seen.transform is mean and table.transform is None
    assert (seen.costs, seen.split, seen.logits is table.logits) == (table.costs, "val", True)
    for k in range(3):
        expected = Mean()(table.log_probs(slice(None))[:, : k + 1])
        assert torch.equal(seen.log_probs(slice(None))[:, k], expected)
        assert torch.equal(seen.log_probs_at(slice(None), k), expected)
        assert torch.equal(seen.log_probs_at(torch.tensor([1]), k), expected[1:])
        assert torch.equal(table.log_probs_at(slice(None), k), table.log_probs(slice(None))[:, k])


def test_the_utility_is_that_of_the_transformed_answers():
    table = synthetic_table(3000, seed=4)
    seen = table.transformed(Mean())
    right = seen.log_probs(slice(None)).argmax(dim=2) == table.labels[:, None]
    assert torch.equal(seen.utility, right.float())
    assert torch.equal(seen.utility[:, 0], table.utility[:, 0])
    assert not torch.equal(seen.utility, table.utility)
    assert seen.utility_is_accuracy and table.utility_is_accuracy


def test_exits_are_read_one_by_one_and_later_ones_not_at_all():
    class Watched(Transform):
        def forward(self, seen):
            assert seen.shape[1] <= 2
            return seen[:, -1]

    table = ExitTable(logits=synthetic_table(20).logits).transformed(Watched())
    assert table.log_probs_at(slice(None), 1).shape == (20, 5)


def test_rows_and_tables_joined_stay_transformed():
    table = synthetic_table(30).transformed(Mean())
    part = table.select(torch.tensor([5, 2]))
    assert part.transform is table.transform
    assert torch.equal(part.log_probs(slice(None)), table.log_probs(torch.tensor([5, 2])))
    joined = ExitTable.concat([part, part])
    assert joined.transform is table.transform
    assert torch.equal(joined.utility, table.utility[[5, 2, 5, 2]])


def test_utility_that_is_not_accuracy_is_unknown_behind_a_transform():
    plain = synthetic_table(50)
    graded = ExitTable(logits=plain.logits, labels=plain.labels, utility=torch.rand(50, 4), costs=plain.costs)
    unlabelled = ExitTable(logits=plain.logits, utility=plain.utility, costs=plain.costs)
    rich = ExitTable(logits=plain.logits, confidence=torch.rand(50, 4), features=torch.ones(50, 4, 2))
    for table in (graded, unlabelled, rich):
        assert not table.utility_is_accuracy
        seen = table.transformed(Flat())
        assert seen.utility is None and seen.labels is None and seen.confidence is None
        with pytest.raises(TableError, match="lacks labels: judging needs 'labels' or 'utility'"):
            seen.require_utility("judging")
    assert torch.equal(rich.transformed(Flat()).features, rich.features)


def test_utility_given_as_accuracy_counts_as_accuracy():
    table = synthetic_table(50)
    given = ExitTable(logits=table.logits, labels=table.labels, utility=table.utility.double())
    assert given.utility_is_accuracy == given.utility.equal(table.utility)
    almost = table.utility.clone()
    almost[0, 0] = 1 - almost[0, 0]
    assert not ExitTable(logits=table.logits, labels=table.labels, utility=almost).utility_is_accuracy


def test_two_transforms_and_saving_are_refused(tmp_path):
    table = synthetic_table(10).transformed(Mean())
    with pytest.raises(InputError, match=r"table is transformed already: .* Use one transform that does both"):
        table.transformed(Flat())
    with pytest.raises(InputError, match=r"table is transformed: .* Save the table it was made from"):
        table.save(tmp_path / "table.npz")
    assert not list(tmp_path.iterdir())


def test_a_transform_without_tensors_has_no_settings_and_serves_any_number_of_exits():
    mean = Mean()
    assert mean.settings() == {}
    assert mean.widened(9) is mean
    with pytest.raises(TypeError):
        Transform()
