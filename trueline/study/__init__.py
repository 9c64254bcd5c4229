"""Several methods on one model, one preference file and one budget. Here: the look of its report, which the quickstart shares."""
