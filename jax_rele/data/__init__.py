"""Pairs from files to tables: reading, splitting, candidates, and the tables that the stages hand on."""

from jax_rele.data.candidates import candidates
from jax_rele.data.foreign import Foreign, read_foreign, read_rationale
from jax_rele.data.ingest import Ingested, ingest
from jax_rele.data.pair_table import PairTable
from jax_rele.data.recombining import recombine
from jax_rele.data.schema import FIELDS, SPLITS, Quarantined, RowError, parse_row
from jax_rele.data.signals import read_signals, take_signals, validate_signals, write_signals
from jax_rele.data.sources import SAMPLE, check_bad_share, read_pairs, source_hash
from jax_rele.data.splits import assign_splits, long_tail, normalise_query
from jax_rele.data.tables import (
    PAIRS,
    QUARANTINE,
    RATIONALES,
    join_tables,
    new_files,
    read_pairs_table,
    read_table,
    write_pairs,
    write_quarantine,
    write_table,
)

__all__ = [
    "FIELDS",
    "PAIRS",
    "QUARANTINE",
    "RATIONALES",
    "SAMPLE",
    "SPLITS",
    "Foreign",
    "Ingested",
    "PairTable",
    "Quarantined",
    "RowError",
    "assign_splits",
    "candidates",
    "check_bad_share",
    "ingest",
    "join_tables",
    "long_tail",
    "new_files",
    "normalise_query",
    "parse_row",
    "read_foreign",
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
