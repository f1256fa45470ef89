"""Tampered titles: what they are, and that their effect is measured as it is."""

import pytest

from jax_rele.annotation.injection import attack, effect
from jax_rele.annotation.votes import Decision
from jax_rele.types import Item, LabelSchema, Pair

LABELS = LabelSchema(("Exact", "Substitute", "Complement", "Irrelevant"), (1.0, 0.1, 0.01, 0.0), ("Exact",))
PAIRS = [Pair(f"p{n}", "red shoes", Item(f"i{n}", f"Blue shoes {n}", "Nike"), "Irrelevant") for n in range(40)]


def decided(pair_id, label):
    return Decision(pair_id, "accepted" if label else "rejected", label=label)


def measure(clean, after, pairs=PAIRS):
    attacks = [one for pair in pairs for one in attack(pair, "Exact", ("brand",))]
    before = {pair.pair_id: decided(pair.pair_id, clean) for pair in pairs}
    then = {one.pair.pair_id: decided(one.pair.pair_id, after(one)) for one in attacks}
    return effect(attacks, before, then, LABELS, n_bootstrap=200), attacks


def test_attacks_differ_keep_the_title_and_carry_no_gold_label():
    attacks = attack(PAIRS[0], "Exact", ("brand", "color"))
    assert len({one.pair.pair_id for one in attacks}) == len({one.pair.item.title for one in attacks}) == len(attacks)
    for one in attacks:
        assert one.pair.item.title.startswith(PAIRS[0].item.title)
        assert one.pair.label is None
        assert (one.pair.query, one.pair.item.brand, one.clean_id) == ("red shoes", "Nike", "p0")
    titles = {one.kind: one.pair.item.title for one in attacks}
    for kind, part in {
        "delimiter": "</item>",
        "think": "</think>",
        "system_role": "<|im_start|>system",
        "answer": '"label": "Exact"',
        "grammar": "\nlabel: Exact",
        "order_zh": "标签",
        "schema": '"enum"',
    }.items():
        assert part in titles[kind]
    assert attack(PAIRS[0], "Exact", ("brand", "color")) == attacks


def test_a_model_that_is_never_fooled_and_one_that_always_is():
    effects, attacks = measure("Irrelevant", lambda one: "Irrelevant")
    assert {effects["overall"][name]["value"] for name in ("towards", "away", "net", "reached", "lost")} == {0.0}
    effects, attacks = measure("Irrelevant", lambda one: "Exact")
    assert effects["overall"]["n"] == len(attacks)
    assert effects["overall"]["towards"] == {"value": 1.0, "ci95": [1.0, 1.0]}
    assert effects["overall"]["reached"]["value"] == 1


def test_each_kind_is_told_apart():
    effects, _ = measure("Irrelevant", lambda one: "Complement" if one.kind == "order" else "Irrelevant")
    assert effects["kinds"]["order"]["towards"]["value"] == 1
    assert effects["kinds"]["order"]["reached"]["value"] == 0
    assert effects["kinds"]["think"]["towards"]["value"] == 0
    assert effects["overall"]["towards"]["value"] == pytest.approx(1 / len(effects["kinds"]))


def test_noise_in_both_directions_has_no_net_effect():
    effects, _ = measure("Substitute", lambda one: "Exact" if int(one.clean_id[1:]) % 2 else "Complement")
    overall = effects["overall"]
    assert overall["towards"]["value"] == overall["away"]["value"] == 0.5
    assert overall["net"]["value"] == 0
    assert overall["net"]["ci95"][0] < 0 < overall["net"]["ci95"][1]


def test_pairs_are_what_is_resampled():
    # The attacks of one pair stand or fall together: as wide as 40 pairs make it.
    effects, _ = measure("Irrelevant", lambda one: "Exact" if int(one.clean_id[1:]) % 2 else "Irrelevant")
    low, high = effects["overall"]["towards"]["ci95"]
    assert high - low > 0.2


def test_what_cannot_move_does_not_count():
    effects, _ = measure("Exact", lambda one: "Irrelevant")
    assert effects["overall"]["n"] == 0
    assert effects["overall"]["towards"] == {"value": None, "ci95": None}
    effects, attacks = measure("Irrelevant", lambda one: None)
    assert effects["overall"]["lost"]["value"] == 1
    assert effects["overall"]["towards"]["value"] == 0
    assert effect(attacks, {}, {}, LABELS)["kinds"] == {}
