"""Stages by themselves: carried from one to the next, samples are answered as by the whole model."""

import numpy as np
import pytest
from exporting import by_name, digits, exported, exported_by_name

from eenet import AdaptiveModel
from eenet.errors import InputError, RunError
from eenet.serving.stages import Parcel, Stage

IMAGES, IDS = digits().inputs(slice(0, 48)).numpy(), np.arange(100, 148)


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return [Stage(exported("onnxruntime").path, k, threads=1) for k in range(3)]


def carried(stages, parcels):
    """Carry parcels together through all stages; returns exits and log-probabilities by parcel."""
    exits = [np.full(len(one.ids), -1) for one in parcels]
    answers = [None] * len(parcels)
    places = [np.arange(len(one.ids)) for one in parcels]
    inside = dict(enumerate(parcels))
    for k, stage in enumerate(stages):
        outcomes = stage.run(list(inside.values()))
        for i, outcome in zip(list(inside), outcomes, strict=True):
            assert outcome.error is None
            gone = places[i][outcome.left]
            exits[i][gone] = k
            if len(gone):
                if answers[i] is None:
                    answers[i] = np.full((len(exits[i]), outcome.log_probs.shape[1]), np.nan, np.float32)
                answers[i][gone] = outcome.log_probs
            places[i] = places[i][outcome.stay]
            if outcome.rest is None:
                del inside[i]
            else:
                inside[i] = outcome.rest
        if not inside:
            break
    assert not inside
    return exits, answers


def parcels_of(sizes, **asked):
    ends = np.cumsum(sizes)
    rows = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    return [Parcel(ids=IDS[row], inputs=IMAGES[row], **asked) for row in rows]


def assert_like(found, wanted) -> None:
    exits, answers = (np.concatenate(one) for one in found)
    np.testing.assert_array_equal(exits, wanted.exit_index)
    np.testing.assert_allclose(answers, wanted.log_probs, atol=1e-5)


@pytest.mark.parametrize("sizes", [[48], [1] * 48, [5, 1, 20, 22]])
def test_carried_samples_are_answered_as_by_the_whole_model(stages, sizes) -> None:
    wanted = AdaptiveModel(exported("onnxruntime").path)(IMAGES, IDS)
    assert len(set(wanted.exit_index.tolist())) == 3
    assert_like(carried(stages, parcels_of(sizes)), wanted)


def test_a_stage_has_its_own_weights_only(stages) -> None:
    assert [list(stage.engine.held) for stage in stages] == [[0], [1], [2]]


def test_budgets_travel_with_the_samples(stages) -> None:
    model = AdaptiveModel(exported("onnxruntime").path)
    parcels, wanted = [], []
    for budget in (1.0, 2.5, 3.7, 4.0):
        parcels += parcels_of([48], budget=budget)
        wanted.append(model.at(budget)(IMAGES, IDS))
    for exits, answers, one in zip(*carried(stages, parcels), wanted, strict=True):
        assert_like(([exits], [answers]), one)


def test_samples_leave_at_the_latest_where_they_are_to(stages) -> None:
    (exits,), _ = carried(stages, parcels_of([48], budget=4.0, max_exit=1))
    assert (exits == 1).all()


def test_a_stage_may_run_a_parcel_again(stages) -> None:
    (parcel,) = parcels_of([48])
    first, again = stages[0].run([parcel])[0], stages[0].run([parcel])[0]
    assert first.rest.state == again.rest.state
    second, repeated = stages[1].run([first.rest])[0], stages[1].run([again.rest])[0]
    np.testing.assert_array_equal(second.log_probs, repeated.log_probs)


def test_who_stays_could_leave_now(stages) -> None:
    (parcel,) = parcels_of([48])
    outcome = stages[0].run([parcel])[0]
    (at_once,) = parcels_of([48], max_exit=0)
    everybody = stages[0].run([at_once])[0]
    np.testing.assert_allclose(outcome.so_far, everybody.log_probs[outcome.stay], atol=1e-6)
    assert outcome.ran[:2] == (48, len(outcome.stay))


def test_who_cannot_be_run_fails_alone(stages) -> None:
    parcels = parcels_of([4, 1, 3])
    parcels[1] = Parcel(ids=IDS[:1], inputs=np.full_like(IMAGES[:1], np.nan))
    good, bad, other = stages[0].run(parcels)
    assert isinstance(bad.error, RunError)
    assert "NaN" in str(bad.error)
    wanted = [stages[0].run([one])[0] for one in (parcels[0], parcels[2])]
    for found, alone in zip((good, other), wanted, strict=True):
        assert found.error is None
        np.testing.assert_array_equal(found.left, alone.left)
    strange = stages[1].run([Parcel(ids=IDS[:1], state=b"no state"), wanted[0].rest])
    assert [type(one.error) for one in strange] == [InputError, type(None)]
    wrong = stages[2].run([wanted[0].rest])[0]
    assert isinstance(wrong.error, InputError)


def test_inputs_by_name() -> None:
    path = exported_by_name().path
    _, batch = by_name()
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    wanted = AdaptiveModel(path)(arrays, np.arange(40))
    parcel = Parcel(ids=np.arange(40), inputs=arrays)
    found = carried([Stage(path, k, threads=1) for k in range(2)], [parcel])
    assert_like(found, wanted)
