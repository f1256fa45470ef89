"""The page of a comparison as a browser reads it, and its figures as files."""

import copy
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from jax_rele.evaluation import plots, svg
from jax_rele.evaluation.comparison import Cell, HeldOutPairs, compare
from jax_rele.evaluation.comparison_page import figures, write_page
from jax_rele.evaluation.comparison_text import findings, setup
from jax_rele.evaluation.summary import cell

VOID = {"meta", "link", "br", "img", "hr", "input"}
SVG = "{http://www.w3.org/2000/svg}"
POINTS = ((20, 40), (300, 40), (300, 0))


class Page(HTMLParser):
    """Tags with their attributes and text; every tag must be closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len(dict(attrs)), (tag, attrs)
        self.tags.append({"tag": tag, "text": "", **{f"@{name}": value for name, value in attrs}})
        if tag not in VOID:
            self.open.append(self.tags[-1])

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for entry in self.open:
            entry["text"] += data

    def all(self, tag):
        return [entry for entry in self.tags if entry["tag"] == tag]

    def descriptions(self):
        """The alternative texts of the plots."""
        return [entry["@aria-label"] for entry in self.all("svg")]


@pytest.fixture(scope="module")
def document(made_up, schema):
    rng = np.random.default_rng(0)
    labels, validation = rng.integers(0, 4, 60), rng.integers(0, 4, 40)

    def probs(labels, skill, first):
        return [made_up(labels, skill, first + seed) for seed in range(3)]

    cells = [
        Cell(student, recipe, *point, probs(labels, skill, position), probs(validation, skill, position + 9))
        for point in POINTS
        for position, student in enumerate(("cross_encoder", "two_tower"))
        for recipe, skill in (("label_only", 0.5), ("mkd", 2.5), ("crsd", 0.6))
    ]
    pairs = HeldOutPairs(labels, [f"query {i // 3}" for i in range(60)], validation, {"head": np.arange(60) > 20})
    others = {
        "bm25": (made_up(labels, 0.3, 70), made_up(validation, 0.3, 71)),
        "teacher": (made_up(labels, 3.0, 72), made_up(validation, 3.0, 73)),
    }
    result = compare(
        cells,
        pairs,
        schema,
        others=others,
        seeds=[0, 1, 2],
        gain_maps={"paper": schema.gains},
        n_bootstrap=40,
        seed=0,
    )
    return {"name": "a run", "split": "test", **result}


def with_cells(document, select):
    """The document without the other cells."""
    return {**document, "cells": [each for each in document["cells"] if select(each)]}


@pytest.fixture(scope="module")
def by_labelled(document):
    """Two numbers of labelled pairs."""
    return with_cells(document, lambda each: each["teacher_labelled"] == 40)


@pytest.fixture(scope="module")
def html(by_labelled, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "comparison.html"
    write_page(path, by_labelled)
    return path.read_text("utf-8")


@pytest.fixture
def render(small, tmp_path):
    def render(document=small):
        write_page(tmp_path / "page.html", document)
        return (tmp_path / "page.html").read_text("utf-8")

    return render


@pytest.fixture
def small(document):
    """One point, slice and student: the fewest plots."""
    selected = with_cells(document, lambda each: each["labelled"] == 20 and each["student"] == "two_tower")
    selected = copy.deepcopy(selected)
    selected["slices"] = {"all": 60}
    for each in selected["cells"]:
        del each["slices"]["head"]
    return selected


def test_the_page_is_well_formed_and_needs_nothing_else(html):
    page = Page(html)
    assert len(page.all("style")) == 1
    assert not [entry["tag"] for entry in page.tags if entry["tag"] in ("script", "img", "link", "iframe", "object")]
    for entry in page.tags:
        assert not any(name.startswith("@on") for name in entry)
        for name in ("@src", "@href", "@xlink:href", "@srcset", "@action"):
            assert (entry.get(name) or "#").startswith("#"), entry
    assert not re.search(r"url\((?!['\"]?#)|@import", html)
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= set(re.findall(r"(--[\w-]+):", html))
    ids = [entry["@id"] for entry in page.tags if "@id" in entry]
    assert len(ids) == len(set(ids))
    assert {entry["@href"][1:] for entry in page.all("a")} <= set(ids)
    assert len(page.descriptions()) == len(set(page.descriptions()))


def test_every_figure_of_the_document_is_in_a_table(html, by_labelled):
    document = by_labelled
    page = Page(html)
    assert page.all("h1")[0]["text"] == "a run: recipes compared"
    assert setup(document) in page.all("header")[0]["text"]
    tables = iter(page.all("table"))
    n_rows = 0
    for point in ((300, 40), (20, 40)):
        for slice_name in document["slices"]:
            table = " ".join(next(tables)["text"].split())
            for name, descriptions in document["others"][slice_name].items():
                assert f"{name} {' '.join(cell(descriptions[metric]) for metric in document['metrics'])}" in table
            for each in document["cells"]:
                if (each["labelled"], each["teacher_labelled"]) != point:
                    continue
                n_rows += 1
                descriptions = each["slices"][slice_name]
                row = table.split(f"{each['student']} {each['recipe']} ")[1]
                fractions = [f"{descriptions[metric]['retained']:.1%}" for metric in ("auc", "macro_f1")]
                texts = []
                for metric in document["metrics"]:
                    texts.append(cell(descriptions[metric]))
                    if descriptions[metric]["difference"] is not None:
                        texts.append(cell(descriptions[metric]["difference"], sign=True))
                row = re.sub("[▲▼] ", "", row)
                assert row.startswith(" ".join([*fractions, *texts]))
    assert n_rows == len(document["cells"]) * 2
    assert next(tables, None) is None


def test_the_marks_of_the_table_and_the_sentences_agree_with_the_intervals(render, small):
    for each in small["cells"]:
        for metric, descriptions in each["slices"]["all"].items():
            if descriptions["difference"] is not None:
                better = each["recipe"] == "mkd"
                descriptions["difference"]["ci95"] = [0.1, 0.2] if better == (metric == "auc") else [-0.2, -0.1]
    page = Page(render())
    rows = {row["text"].split()[1]: row["text"] for row in page.all("tr") if "two_tower" in row["text"]}
    marks = {recipe: re.sub("[^▲▼]", "", row) for recipe, row in rows.items()}
    # auc, neg_ap, two F1, spearman, one nDCG, and two calibration errors, of which less is better.
    assert marks == {"label_only": "", "mkd": "▲▼▼▼▼▼▲▲", "crsd": "▼▲▲▲▲▲▼▼"}
    kinds = [entry["text"] for entry in page.all("span") if "kind" in (entry.get("@class") or "")]
    assert kinds == ["▲ better", "▼ worse"]


def test_the_sentences_are_there(html, by_labelled):
    text = Page(html).all("main")[0]["text"]
    assert len(findings(by_labelled)) == 2 * 2 * 2 * 2
    for _, sentence in findings(by_labelled):
        assert sentence in text


def test_plots_tell_their_numbers(html, document):
    descriptions = Page(html).descriptions()
    # Dots and curves of values and of differences: two metrics, two slices, two points or students.
    assert len(descriptions) == 2 * 2 * 2 * 2 + 2 * 2 * 2 * 2
    (each,) = [
        each
        for each in document["cells"]
        if (each["student"], each["recipe"], each["labelled"], each["teacher_labelled"]) == ("two_tower", "mkd", 20, 40)
    ]
    figure = each["slices"]["head"]["auc"]
    seeds = ", ".join(f"{value:.3f}" for value in figure["by_seed"])
    (values,) = [t for t in descriptions if t.startswith("auc, head, 39 pairs; trained on 20 + 40, ")]
    assert f"two_tower mkd {cell(figure)} (seeds {seeds})" in values
    assert f"bm25 {cell(document['others']['head']['bm25']['auc'])}" in values
    (differences,) = [
        t for t in descriptions if t.startswith("auc less label_only, head, 39 pairs; trained on 20 + 40")
    ]
    reference = next(each for each in document["cells"] if each["student"] == "two_tower")["slices"]["head"]["auc"]
    seeds = ", ".join(f"{a - b:.3f}" for a, b in zip(figure["by_seed"], reference["by_seed"]))
    assert f"two_tower mkd {cell(figure['difference'], sign=True)} (seeds {seeds})" in differences
    assert "label_only" not in differences.split(":", 1)[1]
    (curve,) = [
        text
        for text in descriptions
        if text.startswith("auc, two_tower, head, ") and "by labelled pairs, with 40" in text
    ]
    assert f"mkd {cell(figure)} at 20, " in curve
    assert f"teacher {document['others']['head']['teacher']['auc']['value']:.3f}" in curve


def test_one_point_has_no_curves(render):
    page = Page(render())
    assert len(page.descriptions()) == 4
    assert "Learning curves" not in page.all("body")[0]["text"]
    assert "trained on" not in " ".join(page.descriptions())


def test_names_are_text(render, small):
    attack = '</style></svg><script>alert(1)</script>"><img src=x>'
    small["name"] = attack
    small["cells"][1]["recipe"] = attack
    small["slices"] = {attack: 60}
    small["others"] = {attack: {attack: small["others"]["all"]["bm25"]}}
    for each in small["cells"]:
        each["student"] = attack
        each["slices"] = {attack: each["slices"]["all"]}
    html = render()
    assert "<script" not in html
    assert "<img" not in html
    page = Page(html)
    assert page.all("h1")[0]["text"] == f"{attack}: recipes compared"
    assert any(attack in descriptions for descriptions in page.descriptions())
    for text in figures(small).values():
        ElementTree.fromstring(text.encode())


def test_what_is_undefined_is_a_dash(render, small):
    undefined = {"value": None, "ci95": None}
    for descriptions in small["others"]["all"].values():
        descriptions["auc"] = undefined
    for each in small["cells"]:
        figure = each["slices"]["all"]["auc"]
        figure.update(undefined, by_seed=[None] * 3, retained=None)
        figure["difference"] = figure["difference"] and undefined
    page = Page(render())
    assert "mkd –" in next(descriptions for descriptions in page.descriptions() if descriptions.startswith("auc,"))
    assert "mkd –" in next(descriptions for descriptions in page.descriptions() if descriptions.startswith("auc less"))
    row = next(row["text"] for row in page.all("tr") if row["text"].split()[:2] == ["two_tower", "mkd"])
    assert row.split()[2] == "–"
    assert row.split()[4:6] == ["–", "–"]
    assert not re.search(r"\b(nan|None)\b", page.all("body")[0]["text"])


def test_without_label_only_nothing_is_compared(render, small):
    small["cells"] = [each for each in small["cells"] if each["recipe"] == "mkd"]
    small["cells"][0]["slices"]["all"] = {
        metric: {**descriptions, "difference": None}
        for metric, descriptions in small["cells"][0]["slices"]["all"].items()
    }
    page = Page(render())
    assert len(page.descriptions()) == 2
    assert "label_only was not trained" in page.all("main")[0]["text"]
    assert figures(small) == {}


def test_figures_are_files_of_their_own(document):
    drawn = figures(with_cells(document, lambda each: each["labelled"] == 300 and each["student"] == "two_tower"))
    assert [stem for stem in drawn if not stem.startswith("curve")] == [
        "difference_auc_all",
        "difference_auc_head",
        "difference_macro_f1_all",
        "difference_macro_f1_head",
    ]
    assert "curve_auc_two_tower_head_by_teacher-labelled_with_300" in drawn
    assert "curve_difference_macro_f1_two_tower_all_by_teacher-labelled_with_300" in drawn
    assert len(drawn) == 4 + 8
    for text in drawn.values():
        root = ElementTree.fromstring(text.encode())
        assert root.tag == f"{SVG}svg"
        assert float(root.get("width")[:-2]) > 200
        background = root[0]
        assert (background.tag, background.get("fill")) == (f"{SVG}rect", "#ffffff")
        assert "var(" not in text
        assert "DejaVu" not in text
        assert re.search(r"fill: #[0-9a-f]{6}", text)
        assert not re.search(r"#0[abc]00", text)
    assert "trained on 300 + 40" in drawn["difference_auc_all"]


def test_a_plot_in_the_colours_of_labels_needs_its_page():
    plot = plots.score_distributions("m", np.array([0.1, 0.9]), np.array([0, 1]), ("a", "b"))
    with pytest.raises(ValueError, match="--label-0, --label-1"):
        plots.standalone(plot)


def curve(xs, values, **changes):
    points = [(x, {"value": y, "ci95": None if y is None else [y - 0.01, y + 0.01]}) for x, y in zip(xs, values)]
    options = {"xlabel": "pairs", "levels": {}, **changes}
    return ElementTree.fromstring(plots.standalone(plots.curves("t", [plots.Curve("mkd", 1, points)], **options)))


def words(root):
    """{text: x} of the drawing."""
    positions = {}
    for text in root.iter(f"{SVG}text"):
        position = re.search(r"(?:translate\(|rotate\([^)]*?)([\d.]+)", text.get("transform") or "")
        positions[text.text.strip()] = float(text.get("x") or (position and position[1]) or 0)
    return positions


def test_a_wide_range_of_pairs_is_on_a_logarithmic_axis_with_nothing_at_its_left():
    shown = words(curve([0, 100, 1000, 10000], [0.5, 0.6, 0.7, 0.8]))
    assert "pairs (log scale)" in shown
    zero, *rest = (shown[text] for text in ("0", "100", "1,000", "10,000"))
    assert rest[1] - rest[0] == pytest.approx(rest[2] - rest[1], rel=0.02)
    assert rest[0] - zero == pytest.approx((rest[1] - rest[0]) / 2, rel=0.02)
    shown = words(curve([0, 100, 500], [0.5, 0.6, 0.7]))
    assert "pairs" in shown
    assert shown["500"] - shown["0"] == pytest.approx(5 * (shown["100"] - shown["0"]), rel=0.02)


def test_numbers_without_room_go_unwritten_and_levels_far_away_are_named():
    shown = words(curve([100, 101, 500], [0.5, None, 0.7], levels={"teacher": 0.99, "near": 0.72}))
    assert {"100", "101"} & set(shown) == {"101"}
    assert "teacher 0.990 ↑" in shown
    assert "near" in shown
    assert "label_only" in words(curve([1, 2], [0.5, 0.6], levels={"label_only": 0.0}, sign=True))


def test_no_two_of_many_recipes_look_alike(html):
    looks = {svg.look(series) for series in range(56)} | {svg.look(None)}
    assert len({look[:2] for look in looks}) == 57
    dots = plots.dots("t", {"": [plots.DotRow("x", {"value": 0.5, "ci95": None}, series) for series in range(9)]})
    for number in range(8):
        assert f"var(--series-{number})" in dots
        assert len(set(re.findall(rf"--series-{number}: (#\w+);", html))) == 2
