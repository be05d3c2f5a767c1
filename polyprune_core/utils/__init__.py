"""Files written whole or not at all, generators, memory, progress: knows nothing of pruning."""
