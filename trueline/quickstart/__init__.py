"""The main job, end to end, on data that any machine has: teach a small model to document Python functions."""
