"""The paper: its numbers (the CSV files here), the rows of its tables, its figures' sweeps, search, latency."""
