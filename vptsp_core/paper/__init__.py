"""The paper: its printed numbers (the CSV files here), and the runs, measurements and tables that reproduce them."""
