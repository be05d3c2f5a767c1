"""What is asked: settings, budgets, presets, and the cells that they make."""
