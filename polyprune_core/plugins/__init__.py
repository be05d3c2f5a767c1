"""Contracts, hook specifications, isolated loading, guarding, and what may come back."""
