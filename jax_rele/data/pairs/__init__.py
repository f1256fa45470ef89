"""Pairs from rows to tables: ingest, duplicates, splits, candidates."""
