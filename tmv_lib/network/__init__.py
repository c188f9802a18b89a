"""Classifiers and how they are trained."""
