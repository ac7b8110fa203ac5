"""Notebooks: their parameters, their execution, and the results page."""
