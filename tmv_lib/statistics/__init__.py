"""Figures, intervals, tests and fits that every question computes with."""
