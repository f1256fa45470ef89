"""Distillation: objectives as terms, the dataset of pairs with signals, and the trainer."""
