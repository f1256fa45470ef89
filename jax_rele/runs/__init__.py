"""Runs on disk: the table of stages, the order and state of stages, artefacts, and models loaded from a run."""
