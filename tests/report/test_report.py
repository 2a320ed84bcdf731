import base64
import json
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from tests.evaluation.tables import planted

from eenet import report
from eenet.errors import InputError
from eenet.evaluation import compare, evaluate
from eenet.report.comparison import who_pays
from eenet.schedulers import GeometricScheduler, PatienceScheduler

PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "img", "br", "hr", "link", "input"}


@pytest.fixture(scope="module", params=[1, 2], ids=["one split", "two splits"])
def comparison(request):
    """A comparison as it comes back from a JSON file."""
    schedulers = {"max_prob": GeometricScheduler(), "<b>patience": PatienceScheduler()}
    budgets = ["50%", "70%", 2.5]
    found = compare(planted(60, 1), planted(60, 2), schedulers, budgets, splits=request.param, resamples=20)
    return json.loads(json.dumps(found.to_dict(), allow_nan=False))


@pytest.fixture(scope="module")
def text(comparison):
    """What a reader of the page sees."""
    return "".join(Page(report.comparison_page(comparison)).text)


class Page(HTMLParser):
    """Checks that tags are balanced and collects what a page consists of."""

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.tables, self.text = [], [], 0, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.extend((tag, *pair) for pair in attrs)
        self.tables += tag == "table"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


# plots


@pytest.mark.parametrize("draw", [report.utility_cost, report.gain_over_random])
def test_every_plot_is_a_labelled_png(comparison, draw, tmp_path):
    figure = draw(comparison)
    assert figure.axes[-1].get_xlabel() or figure.axes[0].get_xlabel()
    report.save_figure(figure, tmp_path / "plot.png", dpi=40)
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)


def test_the_curves_carry_units_bounds_static_exits_and_the_full_model(comparison):
    axes = report.utility_cost(comparison).axes[0]
    assert axes.get_xlabel() == "Mean cost per sample [MFLOPs]"
    assert axes.get_ylabel().endswith("[%]")
    labels = [text.get_text().split("  ")[0] for text in axes.get_legend().get_texts()]
    assert {"max_prob", "<b>patience", "random", "oracle", "static exits", "last exit"} == set(labels)
    assert labels[0] == "oracle"  # the legend goes from the best to the worst
    assert axes.child_axes[0].get_xlabel() == "% of the original model without exits"


def test_wide_cost_ranges_are_drawn_on_a_logarithmic_axis(comparison):
    wide = json.loads(json.dumps(comparison))
    wide["exits"][-1]["cost"] = 100.0
    assert report.utility_cost(wide).axes[0].get_xscale() == "log"
    assert report.utility_cost(comparison).axes[0].get_xscale() == "linear"


# page


def test_the_page_is_whole_self_contained_and_escaped(comparison, tmp_path):
    policy = GeometricScheduler().fit(planted(60, 1), budget=2.0)
    bench = {
        "device": "cpu",
        "threads": 1,
        "rows": [
            {
                "engine": "eager",
                "dtype": "float32",
                "batch_size": 1,
                "full_ms": 2.0,
                "adaptive_ms": 1.0,
                "speedup": 2.0,
                "ideal_speedup": 2.5,
                "ideal_speedup_flops": 2.6,
                "efficiency": None,
                "flips": 0,
                "exit_distribution": [0.5, 0.5],
            }
        ],
    }
    html = report.comparison_page(
        comparison,
        title="A & B <script>",
        report=evaluate(policy, planted(60, 2), budget=2.0).to_dict(),
        bench=bench,
        examples=[
            report.Example(exit_index=0, caption="7 & 7", image=np.zeros((8, 8), dtype=np.uint8)),
            report.Example(exit_index=2, caption="rgb", image=np.zeros((8, 8, 3), dtype=np.uint8)),
            report.Example(exit_index=1, caption="a text", text="<i>hello"),
        ],
        caveats=["planted data"],
        command='eenet compare "a&b.npz"',
    )
    report.write_page(tmp_path / "page.html", html)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    text = "".join(page.text)
    assert "<b>patience" in text and "<b>patience" not in html
    assert html.count("<script>") == 1 and "A & B <script>" in text  # the page's own
    for said in ("planted data", 'eenet compare "a&b.npz"', "Left at exit 2", "<i>hello", "seed", "machine", "random"):
        assert said in text
    assert page.tables >= 8
    sources = [value for tag, name, value in page.attributes if name in ("src", "href")]
    pictures = [source for source in sources if not source.startswith("#part-")]
    assert len(pictures) == 2
    for source in pictures:
        assert source.startswith("data:image/png;base64,")
        assert base64.b64decode(source.split(",")[1]).startswith(PNG)
    alts = [value for tag, name, value in page.attributes if tag == "img" and name == "alt"]
    assert alts == ["input: 7 & 7", "input: rgb"]
    assert "http" not in html


def test_the_numbers_of_the_json_stand_on_the_page(comparison, text):
    page = report.comparison_page(comparison)
    for row in comparison["rows"]:
        assert f"{100 * row['utility_at_budget']:.2f}" in text
        assert f"{row['test_cost']:.4g}" in text
    for exit_ in comparison["exits"]:
        assert f"{100 * exit_['utility_test']:.2f}" in text
    assert "asked [MFLOPs]" in text
    assert "<td>2.5</td><td>2.5</td>" in page and "<td>50%</td><td>1.4</td>" in page  # as typed, and in the unit


def test_pairs_are_turned_round_so_that_the_tested_policy_stands_first(comparison, text):
    area, pairs = comparison["area"], comparison["pairs"]
    pair = next(pair for pair in pairs if {pair["a"], pair["b"]} == {"max_prob", "<b>patience"})
    for first, other in (("max_prob", "<b>patience"), ("<b>patience", "max_prob")):
        page = report.comparison_page({**comparison, "family": {"policy": first, "against": [other]}})
        seen = "".join(Page(page).text)
        assert f"{first} − {other}" in seen and f"{other} − {first}" not in seen
        assert f"{100 * (area[first] - area[other]):+.2f}" in seen
        low, high = sorted(pair[end] if pair["a"] == first else -pair[end] for end in ("low", "high"))
        assert f"{low:+.2f} to {high:+.2f}" in seen
    assert "significant" in text


def test_a_verdict_is_given_on_tested_pairs_only(comparison):
    tested, *others = comparison["pairs"]
    for said, verdict, cell in ((True, "significant", "yes"), (False, "not significant", "no")):
        pairs = [{**tested, "significant": said}, *others]
        assert [report.verdict(pair) for pair in pairs] == [verdict, "", ""]
        lines = report.comparison_markdown({**comparison, "pairs": pairs}, title="Results").splitlines()
        cells = {
            line.split(" | ")[0].strip("| "): line.rstrip(" |").split(" | ")[3:] for line in lines if " − " in line
        }
        assert cells == {
            "max_prob − <b>patience": [cell],
            "max_prob − random": ["-"],
            "<b>patience − random": [],
        }
    assert report.verdict({"significant": True}) == ""  # of the first edition: not corrected


def test_who_pays_stands_in_the_markdown_and_on_the_page_where_somebody_does(comparison, text):
    markdown = report.comparison_markdown(comparison, title="Results")
    assert "Who pays" not in text and "## Who pays for early exit" in markdown
    paying = [entry | {"pays_more": 1} for entry in comparison["groups"]]
    text = "".join(Page(report.comparison_page(comparison | {"groups": paying})).text)
    assert "Who pays" in text
    for entry in comparison["groups"]:
        worst = entry["groups"][0]
        interval = f"{worst['low']:.2f} to {worst['high']:.2f}"
        assert interval in text and f"class {worst['name']}" in text
        assert any(
            line.startswith(f"| {entry['policy']} | {entry['budget_input']} |") and interval in line
            for line in markdown.splitlines()
        )


def test_who_pays_is_said_of_the_policy_that_the_verdict_is_about(comparison):
    names = [name for name in comparison["area"] if name not in ("random", "oracle")]
    for name in names:  # whichever has the largest area
        paying = [entry | {"pays_more": 1, "num_groups": 2} for entry in comparison["groups"]]
        said = who_pays(comparison | {"groups": paying, "family": {"policy": name}})
        assert f"under {name} at" in said and "1 of 2 classes surely loses more" in said
    assert len(names) > 1


def test_a_comparison_without_groups_has_no_section_about_them(comparison):
    bare = {key: value for key, value in comparison.items() if key != "groups"}
    assert report.groups_section(bare) is None
    assert "Who pays" not in report.comparison_markdown(bare, title="Results") + report.comparison_page(bare)


def test_an_incomplete_comparison_is_refused(comparison):
    broken = {key: value for key, value in comparison.items() if key != "curves"}
    with pytest.raises(InputError, match="without 'curves'"):
        report.comparison_page(broken)


def test_costs_have_a_section_of_their_own():
    section = report.costs_section({"cumulative": [1.0, 2.0], "unit": "ms", "reference": 1.6})
    assert section.heading == "Costs per sample"
    page = report.page("costs", [section])
    assert "62.5%" in page and "original model" in page
    measured = {"cumulative": [1.0, 2.0], "unit": "ms", "reference": None, "batch_size": 8, "engine": "eager"}
    assert report.costs_section(measured).heading == "Costs per sample (eager, batch size 8)"


def test_sizes_and_times_up_to_each_exit_stand_in_one_table_per_engine():
    sizes = {"up_to": [60_000, 280_000], "full": 250_000, "policy": 33}
    rows = [
        {"engine": engine, "dtype": "float32", "batch_size": size, "cumulative": [1.5, 3.0], "full": {"median": 2.5}}
        | {"decisions": [{"median": 0.0123}]}
        for engine, size in (("eager", 1), ("eager", 32), ("onnxruntime", 1))
    ]
    eager, onnx, said = report.sizes_section({"parameters": sizes, "latency": rows}).blocks
    assert (eager.caption, onnx.caption) == ("eager float32", "onnxruntime float32")
    assert eager.columns[1:] == (
        *("parameters [M]", "batch 1 [ms]", "batch 32 [ms]"),
        *("deciding, batch 1 [µs]", "deciding, batch 32 [µs]"),
    )
    assert eager.rows == [
        ("exit 0", "0.06", "1.5", "1.5", "12.3", "12.3"),
        ("exit 1", "0.28", "3", "3", "-", "-"),
        ("without exits", "0.25", "2.5", "2.5", "-", "-"),
    ]
    assert said == "The policy that decides adds 33 parameters: 33 per exit at which it decides."
    table, *nothing = report.sizes_section({"parameters": sizes | {"policy": None}, "latency": []}).blocks
    assert table.columns == ("leaving at", "parameters [M]") and not nothing


def test_png_is_what_it_says():
    assert report.png(Figure(figsize=(1, 1)), dpi=20).startswith(PNG)


# markdown


def test_markdown_tables_by_hand():
    text = report.markdown_table(("a", "b"), [("x|y", "1")])
    assert text == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |\n"


def test_the_markdown_page_has_every_policy_and_ends_with_a_newline(comparison):
    text = report.comparison_markdown(
        comparison, title="Results", command="eenet compare", intro="![curves](curves.png)"
    )
    assert text.startswith("# Results\n\n![curves](curves.png)\n\n")
    assert text.endswith("eenet compare\n```\n")
    for name, area in comparison["area"].items():
        assert any(line.startswith(f"| {name} |") and f"{100 * area:.2f}" in line for line in text.splitlines())
    for pair in comparison["pairs"]:
        words = (f"{pair['difference']:+.2f}", f"{pair['low']:+.2f} to {pair['high']:+.2f}")
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {pair['a']} − {pair['b']} |")]
        assert all(f"| {word} |" in line for word in words)
    for row in comparison["rows"]:
        if row["policy"] != "oracle":
            cells = f"| {row['budget']:.4g} | {row['val_cost']:.4g} | {row['test_cost']:.4g} |"
            assert any(cells in line and f"{row['fit_seconds']:.2f}" in line for line in text.splitlines())
    for note in comparison["notes"]:
        assert note in text
