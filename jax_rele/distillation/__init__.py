"""Distillation: the dataset of pairs with signals, what the losses read of it, and the trainer."""
