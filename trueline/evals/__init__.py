"""Evaluation: figures with their uncertainty, from scores and log-probs that others computed. No torch."""
