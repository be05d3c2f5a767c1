"""A name to weights, and a model's layout from families as data."""
