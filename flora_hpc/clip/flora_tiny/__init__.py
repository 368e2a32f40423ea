"""The small CLIP that ships with the package: weights, config and card."""
