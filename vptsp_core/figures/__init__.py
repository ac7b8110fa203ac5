"""Figures in one style, and the views of the explore notebook."""
