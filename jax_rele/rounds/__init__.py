"""Rounds: the teacher explains unlabelled pairs, the next one learns from those that are selected."""
