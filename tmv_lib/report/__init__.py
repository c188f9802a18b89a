"""The report on a model of which only the predictions are known."""
