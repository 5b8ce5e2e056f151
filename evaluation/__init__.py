"""Scores for any folder of generated images, and for the reconstructions of an autoencoder."""
