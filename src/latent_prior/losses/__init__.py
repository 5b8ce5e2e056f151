"""Losses that compare images: adversarial, perceptual, and what a critic sees."""
