"""Whole experiments: fleets of runs, drawn, trained and scored."""
