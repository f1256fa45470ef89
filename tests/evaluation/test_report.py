"""The report as a browser reads it: well formed, self-contained, safe, and with everything it should show."""

import copy
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from jax_rele.evaluation import Example, write_report
from jax_rele.types import Comparison, Item, Pair, Rationale, Span

VOID = {"meta", "link", "br", "img", "hr", "input"}
ATTACK = '</style></title><script>alert(1)</script>"><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """Tags with their attributes, the text within each, and a check that every tag is closed in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.declarations = [], [], []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_decl(self, decl):
        self.declarations.append(decl)

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        entry = {"tag": tag, "text": "", **{f"@{name}": value for name, value in attrs}}
        self.tags.append(entry)
        if tag not in VOID:
            self.open.append(entry)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for entry in self.open:
            entry["text"] += data

    def all(self, tag, **attributes):
        return [
            entry
            for entry in self.tags
            if entry["tag"] == tag and all(entry.get(f"@{name}") == value for name, value in attributes.items())
        ]

    def classed(self, name):
        return [entry for entry in self.tags if name in (entry.get("@class") or "").split()]


def example(query="blue shoe", title="Acme shoe in blue", label="Exact", **fields):
    pair = Pair("p1", query, Item("i1", title, **fields), label, "us")
    return Example(pair, probs={"teacher": np.array([0.7, 0.2, 0.1, 0.0])})


@pytest.fixture(scope="module")
def small(document):
    """A document with few plots: the teacher alone, and one metric that is defined."""
    metrics = {**copy.deepcopy(document), "slices": {}, "differences": []}
    metrics["models"] = {"teacher": metrics["models"]["teacher"]}
    metrics["baselines"] = {}
    for name, figure in metrics["models"]["teacher"].items():
        if name != "ece":
            figure.update(value=None, ci95=None)
    return metrics


@pytest.fixture
def render(small, predictions, judged, schema, tmp_path):
    labels = np.array([schema.index(pair.label) for pair in judged])

    def render(examples, metrics=small, run_name="a run", **changes):
        path = tmp_path / "report.html"
        arguments = {"run_name": run_name, "labels": labels, "probs": predictions["models"], **changes}
        write_report(path, metrics, examples, **arguments)
        return path.read_text(encoding="utf-8")

    return render


def test_the_page_is_well_formed_and_needs_nothing_else(render, document):
    html = render([example()] * 20, document)
    page = Page(html)
    assert page.declarations == ["doctype html"]
    assert len(page.all("style")) == 1
    assert not page.all("script") + page.all("img") + page.all("link") + page.all("iframe")
    for entry in page.tags:
        assert not any(name.startswith("@on") for name in entry)
        for name in ("@src", "@href", "@xlink:href", "@srcset", "@action"):
            assert (entry.get(name) or "#").startswith("#"), entry
    assert not re.search(r"url\((?!['\"]?#)|@import", html)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["@content"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    ids = Counter(entry["@id"] for entry in page.tags if "@id" in entry)
    assert not [name for name, count in ids.items() if count > 1]
    targets = {entry["@href"][1:] for entry in page.all("a")}
    assert targets <= set(ids)


def test_the_data_line_the_sentences_and_the_figures_are_there(render, document):
    page = Page(render([], document, run_name="tiny run", training_seeds=[3, 4]))
    assert page.all("h1")[0]["text"] == "tiny run"
    facts = dict(zip((e["text"] for e in page.all("dt")), (e["text"] for e in page.all("dd"))))
    assert facts == {
        "split": "test",
        "pairs": "147",
        "queries": "49",
        "training seeds": "3, 4",
        "intervals": "95%, 200 resamples of queries, seed 0",
    }
    assert "not recorded" in render([])
    text = page.all("main")[0]["text"].replace("\N{NO-BREAK SPACE}", " ")
    from_document = document["models"]["teacher"]["auc"]
    assert f"{from_document['value']:.3f}[{from_document['ci95'][0]:.3f}, {from_document['ci95'][1]:.3f}]" in text
    assert "teacher beats bm25 on auc: difference +" in text
    first = page.classed("figures")[0]["text"].split()
    assert first.index("majority") < first.index("bm25") < first.index("teacher")
    for name, part in document["slices"].items():
        assert f"{name}, {part['n_pairs']} of 147 pairs" in text


def test_seller_text_is_text(render):
    probs = {ATTACK: np.array([0.1, 0.2, 0.3, 0.4])}
    pair = Pair(ATTACK, ATTACK, Item(ATTACK, ATTACK, ATTACK, ATTACK, attributes=((ATTACK, ATTACK),)), "Exact", ATTACK)
    rationale = Rationale((Comparison(ATTACK, (ATTACK,), (ATTACK,), "match"),), ATTACK)
    spans = (Span("query", 0, 20, ATTACK), Span("title", 5, 30, ATTACK))
    verdicts = {ATTACK: {ATTACK: "mismatch"}}
    examples = [
        Example(pair, rationale, "", "", spans, verdicts, probs),
        Example(pair, None, ATTACK, ATTACK, spans, verdicts, probs),
    ]
    html = render(examples, run_name=ATTACK)
    assert "<script" not in html
    assert "<img" not in html
    page = Page(html)
    assert page.all("h1")[0]["text"] == ATTACK
    assert page.all("title")[0]["text"].startswith(ATTACK)
    assert page.all("pre")[0]["text"] == ATTACK
    assert page.all("mark")[0]["@title"] == ATTACK
    assert page.classed("title")[0]["text"].split("title", 1)[1].strip() == ATTACK


def test_names_of_models_and_labels_are_text_in_the_plots(render, small, predictions):
    name = 'a<b>&"$x_1$'
    metrics = copy.deepcopy(small)
    metrics["models"] = {name: metrics["models"]["teacher"]}
    metrics["decision"][name] = metrics["decision"]["teacher"]
    metrics["score_std"][name] = metrics["score_std"]["teacher"]
    page = Page(render([], metrics, probs={name: predictions["models"]["teacher"]}))
    assert any(entry["@aria-label"].startswith(f"Reliability of {name}") for entry in page.all("svg"))
    assert any(entry["text"].strip() == name for entry in page.all("text"))


def test_evidence_is_marked_where_the_spans_are(render):
    spans = (
        Span("title", 9, 13, "category"),
        Span("title", 0, 11, "brand"),
        Span("query", 5, 900, "category"),
        Span("bullets", 0, 4, "color"),
        Span("nowhere", 0, 3, "size"),
    )
    shown = example("blue shoe 👟", "Acme 靴é shoe", bullets="no evidence in a field that is not there" * 20)
    page = Page(render([Example(shown.pair, spans=spans)]))
    marks = [(entry["text"], entry["@title"]) for entry in page.all("mark")]
    assert marks == [
        ("shoe 👟", "category"),
        ("Acme 靴é s", "brand"),
        ("ho", "brand, category"),
        ("e", "category"),
        ("no e", "color"),
    ]
    title = next(entry for entry in page.classed("title"))
    assert title["text"].split("title", 1)[1].strip() == "Acme 靴é shoe"
    legend = page.classed("legend")[0]["text"]
    assert all(name in legend for name in ("brand", "category", "color", "size", "Exact", "Irrelevant"))


def test_bands_of_an_overlap_are_the_colours_of_its_dimensions(render):
    shown = example(title="blue shoe")
    page = Page(render([Example(shown.pair, spans=(Span("title", 0, 4, "color"), Span("title", 0, 4, "brand")))]))
    (mark,) = page.all("mark")
    assert mark["@title"] == "brand, color"
    assert mark["@style"] == "background: linear-gradient(var(--dimension-1) 0% 50%, var(--dimension-0) 50% 100%)"


def test_the_comparison_table_holds_the_teacher_and_the_students(render):
    rationale = Rationale(
        (
            Comparison("color", ("blue", "navy"), ("red",), "mismatch"),
            Comparison("brand", (), ("Acme",), "absent"),
        ),
        "Substitute",
    )
    verdicts = {"cross_encoder:mkd": {"color": "mismatch", "brand": "match"}, "two_tower:mkd": {"size": "match"}}
    page = Page(render([Example(example().pair, rationale, verdicts=verdicts)]))
    (table,) = page.classed("compare")
    cells = [entry["text"] for entry in page.tags[page.tags.index(table) :] if entry["tag"] in ("th", "td")]
    assert [" ".join(cell.split()) for cell in cells] == [
        *("dimension", "query", "item", "teacher", "cross_encoder:mkd", "two_tower:mkd"),
        *("color", "blue, navy", "red", "mismatch", "mismatch", "–"),
        *("brand", "–", "Acme", "absent", "match", "–"),
        *("size", "–", "–", "–", "–", "match"),
    ]
    assert [entry["text"].strip() for entry in page.classed("differs")] == ["match"]
    assert "The teacher concludes: Substitute, unlike the people who labelled it." in page.all("article")[0]["text"]


def test_a_text_that_did_not_parse_is_shown_with_the_reason(render):
    failed = Example(
        example().pair, None, "garbled\n<text>", "no verdict in line 2", verdicts={"s": {"color": "match"}}
    )
    page = Page(render([failed, example(), Example(example().pair, Rationale(label="Exact"))]))
    first, second, third = (entry["text"] for entry in page.all("article"))
    assert "did not parse: no verdict in line 2" in first
    assert page.all("pre")[0]["text"] == "garbled\n<text>"
    assert "match" in first
    assert "No rationale for this pair." in second
    assert "wrote a label without a comparison. The teacher concludes: Exact." in third


def test_distributions_are_drawn_to_scale(render):
    page = Page(render([example(label="Substitute")]))
    bar = page.classed("bar")[0]
    assert bar["@title"] == "Exact 70%, Substitute 20%, Complement 10%, Irrelevant 0%"
    widths = [float(re.search(r"width: ([\d.]+)%", entry["@style"])[1]) for entry in page.all("i")]
    assert widths == pytest.approx([70.0, 20.0, 10.0])
    assert page.classed("distribution")[0]["text"] == "teacherExact 70%"
    assert "human labelSubstitute" in page.classed("gold")[0]["text"]
    with pytest.raises(ValueError, match=r"teacher: an example's probs must be \[4\]"):
        render([Example(example().pair, probs={"teacher": np.ones(3)})])


@pytest.mark.parametrize(
    "text", ["سماعات بلوتوث سوداء", "ワイヤレスイヤホン 黒", "👩‍👩‍👧 family", "e\u0301 \u202egnp.exe", "a\x00b"]
)
def test_any_script_is_kept_and_finds_its_own_direction(render, text):
    page = Page(render([Example(example(text, text).pair, spans=(Span("query", 1, 3, "size"),))]))
    heading = page.all("h3", dir="auto")[0]
    assert heading["text"] == text
    assert page.classed("title")[0]["text"].split("title", 1)[1].strip() == text


def test_a_lone_surrogate_does_not_stop_the_report(render):
    assert "broken ? shoe" in render([example("broken \ud800 shoe")])


def test_long_texts_are_folded_unless_they_hold_evidence(render):
    long = example(bullets="word " * 200)
    assert Page(render([long])).all("summary")[-1]["text"] == "1000 characters"
    marked = Example(long.pair, spans=(Span("bullets", 0, 4, "size"),))
    assert "1000 characters" not in render([marked])


def test_only_a_clearly_best_figure_is_bold(render, document):
    metrics = copy.deepcopy(document)
    for figures in (*metrics["baselines"].values(), *metrics["models"].values()):
        for figure in figures.values():
            figure.update(value=0.5, ci95=[0.4, 0.6])
    metrics["slices"] = {}
    for column in ("auc", "ece"):
        metrics["models"]["teacher"][column] = {"value": 0.9, "ci95": [0.59, 0.95]}
    assert not Page(render([], metrics)).all("strong")
    metrics["models"]["teacher"]["auc"] = {"value": 0.9, "ci95": [0.61, 0.95]}
    metrics["models"]["teacher"]["ece"] = {"value": 0.9, "ci95": [0.61, 0.95]}
    metrics["models"]["two_tower:mkd"]["ece_calibrated"] = {"value": 0.123, "ci95": [0.1, 0.39]}
    metrics["models"]["two_tower:mkd"]["spearman"] = {"value": 0.7, "ci95": [0.59, 0.9]}
    assert [entry["text"] for entry in Page(render([], metrics)).all("strong")] == ["0.900", "0.123"]


def test_plots_are_described_and_take_their_colours_from_the_page(render, document):
    html = render([], document)
    page = Page(html)
    plots = page.all("svg")
    assert len(plots) == 9 + 2 * len(document["models"])
    assert all(plot["@role"] == "img" and len(plot["@aria-label"]) > 30 for plot in plots)
    auc = next(plot["@aria-label"] for plot in plots if plot["@aria-label"].startswith("auc "))
    assert f"bm25 {document['baselines']['bm25']['auc']['value']:.3f}" in auc
    drawn = html[html.index("<svg") :]
    assert not re.search(r"#0[ab]00", drawn)
    assert {"--ink", "--muted", "--accent", "--label-3"} <= set(re.findall(r"var\((--[\w-]+)\)", drawn))
    defined = set(re.findall(r"(--[\w-]+):", html))
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) <= defined


def test_a_metric_without_any_value_has_no_plot(render):
    described = [plot["@aria-label"].split()[0] for plot in Page(render([])).all("svg")]
    assert described == ["ece", "Reliability", "Scores"]


def test_the_same_input_gives_the_same_page(render):
    assert render([example()]) == render([example()])
