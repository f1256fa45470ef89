"""The page about rounds."""

from jax_rele.rounds.report import build_document, conclusion, markdown, tables


def figures(number, value, gain, gained=True, **more):
    estimate = {"value": value, "ci95": [value - 0.1, value + 0.1]}
    return {
        "round": number,
        "folder": f"runs/a/rounds/round_{number}",
        "gained": gained,
        "validation": estimate,
        "validation_gain": None if gain is None else {"value": gain, "ci95": [gain - 0.1, gain + 0.1]},
        "unlabelled": 9,
        "selected": 4 if number > 1 else 0,
        "selected_labels": {"Exact": 4 if number > 1 else 0, "Irrelevant": 0},
        "rejected": {"disagreement": 5} if number > 1 else {},
        "rationales": 20,
        "seconds": {"prepare": 1.0, "finetune": 10.4},
        "evaluated": {"teacher": {"auc": estimate, "macro_f1": estimate}} if gained else {},
    } | more


def test_the_best_round_is_that_of_the_validation_pairs():
    document = build_document("a", "auc", [figures(1, 0.7, None), figures(2, 0.65, -0.05, gained=False)], "test")
    assert document["best"] == 1
    text = conclusion(document)
    assert "Round 1 has the best teacher on the validation pairs, auc 0.700 [0.600, 0.800]" in text
    assert "Round 2 is not better (-0.050 [-0.150, 0.050])" in text


def test_every_figure_is_in_the_tables():
    document = build_document("a", "auc", [figures(1, 0.7, None), figures(2, 0.8, 0.1)], "test")
    validation, selection, evaluated, cost = (rows for _, rows in tables(document))
    assert validation[1:] == [
        ["1", "0.700 [0.600, 0.800]", "–"],
        ["2", "0.800 [0.700, 0.900]", "+0.100 [0.000, 0.200]"],
    ]
    assert selection[0][-2:] == ["not: disagreement", "rationales learnt"]
    assert selection[2] == ["2", "9", "4", "4", "0", "5", "20"]
    assert evaluated[0] == ["model", "round 1", "round 2"]
    assert [row[0] for row in evaluated[1:]] == ["teacher auc", "teacher macro_f1"]
    assert cost[2] == ["2", "1", "10", "11"]
    for heading, _ in tables(document):
        assert f"## {heading}" in markdown(document)
