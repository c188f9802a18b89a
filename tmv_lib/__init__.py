"""Trust questions put to medical image classifiers: the arithmetic, one module a concept."""
