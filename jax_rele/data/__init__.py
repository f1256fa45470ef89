"""Pairs from files to tables: reading, splitting, candidates, and the tables that the stages hand on."""

from jax_rele.data.pairs.candidates import candidates
from jax_rele.data.pairs.ingest import ingest
from jax_rele.data.pairs.splits import assign_splits, long_tail
from jax_rele.data.pairs.table import PairTable, by_query
from jax_rele.data.parquet import (
    PAIRS,
    RATIONALES,
    REFERENCES,
    join_tables,
    new_files,
    read_pairs_table,
    read_table,
    write_pairs,
    write_quarantine,
    write_table,
)
from jax_rele.data.rows import Quarantined, RowError, parse_row
from jax_rele.data.signals.external import ExternalSignals, read_external_signals, read_rationale
from jax_rele.data.signals.table import concat_signals, read_signals, take_signals, validate_signals, write_signals
from jax_rele.data.sources.shards import SAMPLE, no_labels, read_pairs, source_hash
from jax_rele.data.synthetic.recombination import recombine

__all__ = [
    "PAIRS",
    "RATIONALES",
    "REFERENCES",
    "SAMPLE",
    "ExternalSignals",
    "PairTable",
    "Quarantined",
    "RowError",
    "assign_splits",
    "by_query",
    "candidates",
    "concat_signals",
    "ingest",
    "join_tables",
    "long_tail",
    "new_files",
    "no_labels",
    "parse_row",
    "read_external_signals",
    "read_pairs",
    "read_pairs_table",
    "read_rationale",
    "read_signals",
    "read_table",
    "recombine",
    "source_hash",
    "take_signals",
    "validate_signals",
    "write_pairs",
    "write_quarantine",
    "write_signals",
    "write_table",
]
