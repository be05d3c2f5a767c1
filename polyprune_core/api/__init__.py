"""What `from polyprune_core import compare, prune, evaluate, load_results` gives: the commands as functions."""
