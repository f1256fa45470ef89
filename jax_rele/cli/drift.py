"""drift: whether a bundle still sees and says what it did."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jax_rele.data import read_pairs
from jax_rele.deployment import drift as comparing
from jax_rele.deployment.groups import group_names
from jax_rele.deployment.scorer import Scorer, load_bundle
from jax_rele.errors import UserError
from jax_rele.io import check_output_file, write_json
from jax_rele.types import Pair, ReadOptions


def drift(
    bundle: Path,
    current: str,
    reference: str,
    *,
    by: str | None = None,
    output: Path | None = None,
    reading: ReadOptions = ReadOptions(),
) -> None:
    """Scores two files of pairs, prints their differences and what to do, and writes a page and JSON on request.

    Raises:
      UserError: bad options or input.
    """
    if output is not None and output.suffix != ".html":
        raise UserError(f"{output}: the report is a page; give a name that ends in .html (JSON is written beside it)")
    if output is not None:
        check_output_file(output)
    scorer = load_bundle(bundle)
    old, new = (_read(path, scorer, reading) for path in (reference, current))
    groups = [None if by is None else group_names(pairs, by) for pairs in (old, new)]
    differences = comparing.compare_profiles(
        comparing.profile(scorer, old, by), comparing.profile(scorer, new, by), groups[0], groups[1], by=by or ""
    )
    document = comparing.as_document(
        differences,
        model=str(bundle),
        identity=scorer.manifest.identity,
        reference=reference,
        current=current,
        n_reference=len(old),
        n_current=len(new),
        unknown_characters=[scorer.text_loss(pairs).unknown_fraction for pairs in (old, new)],
    )
    console, table = Console(), Table()
    for name in ("pairs", "of", "PSI", "p, corrected", ""):
        table.add_column(name, justify="right" if name in ("PSI", "p, corrected") else "left")
    for each in differences:
        if each.group == "all" or each.shifted:
            mark = "shifted" if each.shifted else ""
            table.add_row(escape(each.group), escape(each.name), f"{each.psi:.3f}", f"{each.p_adjusted:.2g}", mark)
    console.print(table)
    for line in comparing.advice(differences):
        console.print(escape(line))
    if output is not None:
        write_json(output.with_suffix(".json"), document)
        comparing.write_report(output, document)
        print(f"{output}, {output.with_suffix('.json')}: written")


def _read(path: str, scorer: Scorer, reading: ReadOptions) -> list[Pair]:
    pairs, bad = read_pairs(path, label_names=scorer.schema.names, reading=reading, for_prediction=True)
    if bad:
        print(f"{path}: {len(bad)} bad rows left out, the first is {bad[0].named(path)}")
    if len(pairs) < comparing.FEWEST:
        raise UserError(f"{path}: has {len(pairs)} pairs; a comparison needs at least {comparing.FEWEST}")
    return pairs
