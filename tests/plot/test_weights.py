import numpy as np
import pytest
from matplotlib.colors import to_rgba

from eenet import plot, report
from eenet.errors import InputError
from eenet.evaluation import score_weights
from eenet.schedulers import (
    EENetScheduler,
    GeometricScheduler,
    StoppingScheduler,
    TransformedScheduler,
    fit_calibration,
)
from eenet.testing import synthetic_table

TABLE = synthetic_table(300, seed=1)
POLICIES = {
    "eenet": EENetScheduler(epochs=2).fit(TABLE, budget="60%"),
    "stopping": StoppingScheduler().fit(TABLE, budget="60%"),
    "calibrated": TransformedScheduler(scheduler=EENetScheduler(epochs=2), fit_transform=fit_calibration).fit(
        TABLE, budget=2.3
    ),
    "many classes": EENetScheduler(epochs=1).fit(synthetic_table(300, num_classes=40), budget="60%"),
}


@pytest.mark.parametrize("name", POLICIES)
def test_strips_hold_the_weights_of_every_exit(name):
    found, figure = score_weights(POLICIES[name]), plot.score_weights(POLICIES[name])
    strips = [np.ma.filled(axes.images[0].get_array(), np.nan) for axes in figure.axes if axes.images]
    early = len(next(iter(found.named.values())))
    assert len(strips) == 2 * early
    for k in range(early):
        left, right = strips[2 * k : 2 * k + 2]
        assert np.array_equal(left, [weights[k] for weights in found.by_column.values()])
        assert np.array_equal(right, [[weights[k] for weights in found.named.values()]], equal_nan=True)
        (written,) = [[t.get_text() for t in axes.texts] for axes in figure.axes[2 * k + 1 : 2 * k + 2]]
        read = [weights[k] for weights in found.named.values() if np.isfinite(weights[k])]
        assert [float(text) for text in written] == pytest.approx(read, abs=0.06)
    names = [text.get_text().replace("\n", " ") for text in figure.axes[2 * early - 1].get_xticklabels()]
    assert names == list(found.named)
    assert report.png(figure, dpi=30).startswith(b"\x89PNG")


def test_signs_can_be_told_in_grey_print():
    images = [axes.images[0] for axes in plot.score_weights(POLICIES["eenet"]).axes if axes.images]
    shades = [np.dot(to_rgba(images[0].cmap(x))[:3], (0.299, 0.587, 0.114)) for x in np.linspace(0, 1, 20)]
    assert (np.diff(shades) > 0).all()


def test_transforms_and_mixtures_are_said():
    figure = plot.score_weights(POLICIES["calibrated"])
    assert "calibrated" in figure.get_suptitle()
    assert "followed" not in figure.get_suptitle()  # both halves have the same weights


def test_a_policy_without_weights_is_refused():
    with pytest.raises(InputError, match="no weights"):
        plot.score_weights(GeometricScheduler().fit(TABLE, budget="60%"))
