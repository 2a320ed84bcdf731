import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import AxesImage
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.text import Text

from eenet import plot, report
from eenet.errors import InputError, ShapeError, TableError
from eenet.evaluation import at_equal_cost, paired
from eenet.plot.samples import RIGHT, WRONG
from eenet.schedulers import GeometricScheduler, JointScheduler
from eenet.testing import synthetic_table

SAMPLES = 400
TABLE = synthetic_table(SAMPLES, seed=1)
DIALS = [scheduler.sweep(synthetic_table(SAMPLES)) for scheduler in (GeometricScheduler(), JointScheduler())]
POLICIES = at_equal_cost(*DIALS, TABLE, 2.2)
FOUND = paired(TABLE, *POLICIES)
IMAGES = np.random.default_rng(0).integers(0, 256, (SAMPLES, 6, 9, 3), dtype=np.uint8)
TEXTS = [f"text {i} costs $1 or $2" for i in range(SAMPLES)]


def texts(figure, name):
    return [text.get_text() for text in figure.findobj(Text) if (text.get_gid() or "").startswith(name)]


def test_the_counts_at_every_exit_are_those_of_the_policies():
    figure = plot.ladder(TABLE, *POLICIES)
    for side in (0, 1):
        for k in range(4):
            left = FOUND.exit_index[side] == k
            right, count = int((left & FOUND.right[side]).sum()), int(left.sum())
            (text,) = texts(figure, f"counts {side} {k}")
            assert text == f"right / left:  {right} / {count}  ({right / count:.1%})"


def test_groups_costs_and_accuracies_are_written():
    figure = plot.ladder(TABLE, *POLICIES, names=("this", "that"))
    assert {name: texts(figure, f"group {name}") for name in FOUND.counts} == {
        name: [str(count)] for name, count in FOUND.counts.items()
    }
    assert texts(figure, "accuracy") == [
        f"{right.mean():.2%} right at {cost:.5g} ms per sample"
        for right, cost in zip(FOUND.right, FOUND.costs, strict=True)
    ]
    written = [text.get_text() for text in figure.findobj(Text)]
    assert {"this", "that", "equal cost", "both right, that leaves earlier", "exit 3", "4 ms"} <= set(written)
    assert "NOT at equal cost" in [text.get_text() for text in plot.ladder(TABLE, *unequal()).findobj(Text)]


def unequal():
    return DIALS[0].at(1.5), DIALS[1].at(2.5)


@pytest.mark.parametrize("per_group", [1, 3])
def test_examples_are_of_their_group_and_stand_where_they_leave(per_group):
    figure = plot.ladder(TABLE, *POLICIES, per_group=per_group)
    for side in (0, 1):
        drawn = [text.split() for k in range(4) for text in texts(figure, f"example {side} {k}")]
        for name, row in drawn:
            assert FOUND.group[int(row)] == name
        for name, count in list(FOUND.counts.items())[:-1]:
            assert [one[0] for one in drawn].count(name) == min(count, per_group)
        for k in range(4):
            rows = [int(text.split()[1]) for text in texts(figure, f"example {side} {k}")]
            assert (FOUND.exit_index[side, rows] == k).all()
    borders = [p for p in figure.findobj(Rectangle) if not isinstance(p, FancyBboxPatch) and not p.get_fill()]
    chosen = [[int(t.split()[1]) for t in texts(figure, f"example {side}")] for side in (0, 1)]
    right = [bool(FOUND.right[side, row]) for side in (0, 1) for row in chosen[side]] + [True, False]  # and the legend
    assert sorted(to_hex(p.get_edgecolor()) for p in borders) == sorted(
        (RIGHT if one else WRONG).lower() for one in right
    )
    assert {p.get_linestyle() == "-" or p.get_linestyle() == "solid": to_hex(p.get_edgecolor()) for p in borders} == {
        True: RIGHT.lower(),
        False: WRONG.lower(),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_those_of_the_samples(channels):
    images = IMAGES[..., :channels]
    figure = plot.ladder(TABLE, *POLICIES, images=images, per_group=2)
    rows = [int(text.split()[1]) for side in (0, 1) for k in range(4) for text in texts(figure, f"example {side} {k}")]
    drawn = [np.asarray(image.get_array()) for image in figure.findobj(AxesImage)]
    assert len(drawn) == len(rows)
    expected = sorted(images[row, ..., 0].tobytes() for row in rows)
    assert sorted(image[..., 0].tobytes() for image in drawn) == expected


def test_no_two_examples_overlap_and_none_leaves_the_page():
    figure = plot.ladder(TABLE, *POLICIES, images=IMAGES, per_group=6)
    boxes = [p.get_bbox() for p in figure.findobj(Rectangle) if not isinstance(p, FancyBboxPatch) and not p.get_fill()]
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            assert one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0
    width, height = figure.get_size_inches()
    assert max(box.x1 for box in boxes) < width
    assert max(box.y1 for box in boxes) < height


def test_texts_are_drawn_as_they_are_and_every_figure_can_be_saved():
    figure = plot.ladder(TABLE, *POLICIES, texts=TEXTS, names=("$a", "$b"), per_group=1)
    row = int(texts(figure, "example 0")[0].split()[1])
    assert TEXTS[row] in [text.get_text() for text in figure.findobj(Text)]
    assert report.png(figure, dpi=30).startswith(b"\x89PNG")


def test_the_same_seed_draws_the_same_examples():
    drawn = [texts(plot.ladder(TABLE, *POLICIES, seed=seed), "example") for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("how", "error", "fact"),
    [
        ({"images": IMAGES, "texts": TEXTS}, InputError, "images and texts"),
        ({"images": IMAGES[:-1]}, ShapeError, "400 samples"),
        ({"images": IMAGES[..., 0]}, ShapeError, "height"),
        ({"images": IMAGES / 255}, InputError, "uint8"),
        ({"texts": TEXTS[:3]}, ShapeError, "400 samples"),
        ({"texts": list(range(SAMPLES))}, InputError, "texts"),
        ({"names": ("one",)}, InputError, "names"),
        ({"per_group": 0}, InputError, "per_group"),
        ({"texts": "one"}, InputError, "texts 'one'"),
        ({"texts": 5}, InputError, "texts 5"),
        ({"names": None}, InputError, "names None"),
        ({"names": (1, 2)}, InputError, "names"),
        ({"seed": -1}, InputError, "seed -1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_drawn_is_refused(how, error, fact):
    with pytest.raises(error, match=fact):
        plot.ladder(TABLE, *POLICIES, **how)


def test_a_table_without_labels_is_refused():
    with pytest.raises(TableError, match="labels"):
        plot.ladder(synthetic_table(100, labels=False), *POLICIES)
