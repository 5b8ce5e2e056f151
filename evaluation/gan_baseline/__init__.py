"""The opponent: two GANs, trained by the same loop on the same images as the two stages."""
