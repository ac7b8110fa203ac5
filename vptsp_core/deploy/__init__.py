"""Work with your own images: train on a folder, export a model, index a folder and search it."""
