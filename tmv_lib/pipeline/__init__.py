"""Files, params and pictures of the stages: the only wing that knows paths."""
