"""What the commands do: compare, prune, evaluate, export."""
