"""Scores of a run's students, and the teacher's rationale, for pairs of your own.

python scripts/examples/judge_pairs.py RUN_DIR QUERY TITLE [TITLE ...]
"""

import sys

from jax_rele import load_student, load_teacher


def main(run_dir: str, query: str, *titles: str) -> None:
    pairs = [(query, title) for title in titles]
    predictions = load_student(run_dir, "cross_encoder").predict(pairs)
    tower = load_student(run_dir, "two_tower")
    similarities = tower.embed([query], "query") @ tower.embed(titles, "item").T
    rationales = load_teacher(run_dir).explain(pairs).texts
    for row, title in enumerate(titles):
        print(f"{title}: score {predictions.scores[row]:.3f}, inner product {similarities[0, row]:.3f}")
        if predictions.verdicts is not None:
            print(f"  verdicts: {', '.join(predictions.verdicts[row])}")
        print(f"  rationale: {rationales[row]!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
