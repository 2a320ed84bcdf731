import numpy as np
import pytest
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from eenet import plot, report
from eenet.errors import InputError, TableError
from eenet.evaluation import separation
from eenet.evaluation.scores import auroc, main_score, on_unit_scale
from eenet.policies import ConfidenceScorer
from eenet.schedulers import (
    EENetScheduler,
    GeometricScheduler,
    StoppingScheduler,
    TransformedScheduler,
    fit_ensemble,
)
from eenet.testing import synthetic_table

TABLE = synthetic_table(300, seed=1, num_classes=6)
LEARNED = EENetScheduler(epochs=2).fit(TABLE, budget="60%")
IMAGES = np.random.default_rng(0).integers(0, 256, (300, 5, 5, 1), dtype=np.uint8)


def points(axes, kind):
    """Heights of right or wrong samples by class column."""
    found = [one for one in axes.collections if (one.get_gid() or "").startswith(kind)]
    return {int(one.get_gid().split()[1]): sorted(one.get_offsets()[:, 1].tolist()) for one in found}


def test_heights_markers_classes_and_areas_are_those_of_the_table():
    left, right = plot.scores_by_class(TABLE, LEARNED, exit=1).axes
    accuracy = [TABLE.utility[label == TABLE.labels, -1].mean() for label in range(6)]
    order = np.argsort(accuracy, kind="stable").tolist()
    shown = [text.get_text() for text in left.get_xticklabels()]
    assert shown == [f"{label}\n{accuracy[label]:.0%}" for label in order]
    sure = np.exp(TABLE.seen()[:, 1].max(axis=1).astype(float))
    learned = LEARNED.components()[0][1].scorer(TABLE.seen()[:, :2]).clip(0, 1)
    ok = TABLE.utility[:, 1] == 1
    for axes, heights in ((left, sure), (right, learned)):
        for x, label in enumerate(order):
            for kind, here in (("right", ok), ("wrong", ~ok)):
                expected = sorted(heights[(TABLE.labels == label) & here].tolist())
                assert points(axes, kind)[x] == pytest.approx(expected, abs=1e-5)
    assert right.get_title(loc="left") == f"exit 1: AUROC {separation(LEARNED, TABLE).overall[1]:.3f}"
    assert left.get_title(loc="left") == f"exit 1: AUROC {auroc(sure, ok):.3f}"
    assert (left.get_ylabel(), right.get_ylabel()) == ("largest probability", "learned score")


def test_a_score_that_is_no_probability_is_drawn_by_rank_and_says_so():
    policy = StoppingScheduler().fit(TABLE, budget="60%")
    left, right = plot.scores_by_class(TABLE, policy, confidence="margin").axes
    assert left.get_ylabel() == "margin"
    assert "rank" in right.get_ylabel()
    main = main_score(policy)
    ranks, _ = on_unit_scale(main.scorer, main.at_exits(TABLE)[0][:, 0])
    drawn = [height for kind in ("right", "wrong") for heights in points(right, kind).values() for height in heights]
    assert sorted(drawn) == pytest.approx(sorted(ranks))


def test_combined_exits_are_right_where_their_combination_is():
    ensemble = TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_ensemble)
    policy = ensemble.fit(TABLE, budget="60%")
    combined = TABLE.transformed(policy.components()[0][1].transform)
    left, right = plot.scores_by_class(TABLE, policy, exit=2).axes
    for axes, table in ((left, TABLE), (right, combined)):
        assert sum(map(len, points(axes, "right").values())) == table.utility[:, 2].sum()
        sure = table.seen()[:, 2].max(axis=1)
        assert axes.get_title(loc="left") == f"exit 2: AUROC {auroc(sure, table.utility[:, 2] == 1):.3f}"
    assert TABLE.utility[:, 2].sum() != combined.utility[:, 2].sum()


def test_pictures_stand_at_their_scores_and_do_not_hide_each_other():
    figure = plot.scores_by_class(TABLE, LEARNED, images=IMAGES, classes=3)
    found = []
    for axes in figure.axes:
        boxes = [one for one in axes.artists if isinstance(one, AnnotationBbox)]
        found.append([(box.get_gid(), *box.xy) for box in boxes])
        for x in range(3):
            heights = np.sort([y for _, at, y in found[-1] if at == x])
            assert len(heights) > 1
            assert np.diff(heights).min() >= 0.09
        for box in boxes[:5]:
            image = np.asarray(box.findobj(OffsetImage)[0].get_data())[..., 0]
            (row,) = np.flatnonzero((IMAGES[..., 0] == image).all(axis=(1, 2)))
            assert box.get_gid() == ("right" if TABLE.utility[row, 0] else "wrong")
    sure = ConfidenceScorer("max_prob")(TABLE.seen()[:, :1])
    assert {round(y, 6) for _, _, y in found[0]} <= set((1 / (1 + np.exp(-sure.astype(float)))).round(6))
    assert report.png(figure, dpi=30).startswith(b"\x89PNG")


def test_classes_are_spread_over_the_order_or_those_named():
    axes = plot.scores_by_class(TABLE, LEARNED, classes=2).axes[0]
    every = plot.scores_by_class(TABLE, LEARNED).axes[0]
    shown, known = ([text.get_text() for text in one.get_xticklabels()] for one in (axes, every))
    assert shown == [known[0], known[-1]]
    for classes in ([4, 2], np.array([4, 2])):
        named = plot.scores_by_class(TABLE, LEARNED, classes=classes).axes[0].get_xticklabels()
        assert {text.get_text().split("\n")[0] for text in named} == {"2", "4"}


@pytest.mark.parametrize(
    ("how", "fact"),
    [
        ({"classes": [2, 9]}, "classes 9"),
        ({"classes": 0}, "classes"),
        ({"classes": []}, "classes"),
        ({"exit": 3}, "exit 3 .* from 0 to 2"),
        ({"confidence": "no such"}, "no such"),
        ({"images": IMAGES[:5]}, "images"),
        ({"classes": ["2"]}, "classes '2'"),
        ({"seed": 1.5}, "seed 1.5"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_drawn_is_refused(how, fact):
    with pytest.raises(InputError, match=fact):
        plot.scores_by_class(TABLE, LEARNED, **how)


def test_a_table_without_labels_is_refused():
    policy = GeometricScheduler().fit(TABLE, budget="60%")
    with pytest.raises(TableError, match="labels"):
        plot.scores_by_class(synthetic_table(100, num_classes=6, labels=False), policy)
