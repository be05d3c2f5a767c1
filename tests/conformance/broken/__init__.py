"""Plugins with one fault each; `FAULTS` in every module maps an implementation to the one check that must fail."""
