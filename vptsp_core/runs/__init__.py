"""Runs: training with its folder and its checkpoints, evaluation, many runs side by side, the embedder."""
