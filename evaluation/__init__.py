"""Scores for any folder of generated images: distances to a reference and the quality of reconstructions."""
