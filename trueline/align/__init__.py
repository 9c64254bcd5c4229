"""Where preference rows come from: rollouts, judges, simulated annotators, selection. No torch: samplers and scorers are handed in."""
