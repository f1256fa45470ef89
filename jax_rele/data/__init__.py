"""Pairs from files to tables: reading, splitting, crossing, and the tables that the stages hand on."""

from jax_rele.data.crossing import cross
from jax_rele.data.foreign import Foreign, read_foreign, read_rationale
from jax_rele.data.recombining import recombine
from jax_rele.data.schema import FIELDS, SPLITS, Quarantined, RowError, parse_row
from jax_rele.data.signals import read_signals, take_signals, validate_signals, write_signals
from jax_rele.data.sources import SAMPLE, check_quarantine, read_pairs, source_files
from jax_rele.data.splits import assign_splits, long_tail, normalise_query
from jax_rele.data.tables import (
    PAIRS,
    QUARANTINE,
    RATIONALES,
    join_tables,
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
    "Quarantined",
    "RowError",
    "assign_splits",
    "check_quarantine",
    "cross",
    "join_tables",
    "long_tail",
    "normalise_query",
    "parse_row",
    "read_foreign",
    "read_pairs",
    "read_pairs_table",
    "read_rationale",
    "read_signals",
    "read_table",
    "recombine",
    "source_files",
    "take_signals",
    "validate_signals",
    "write_pairs",
    "write_quarantine",
    "write_signals",
    "write_table",
]
