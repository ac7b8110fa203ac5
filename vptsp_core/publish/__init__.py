"""Notebooks: their parameters, their execution, and the page of results."""
