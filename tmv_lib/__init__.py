"""Trust questions put to medical image classifiers: the arithmetic, one module a concept."""

__version__ = "0.1.0"
