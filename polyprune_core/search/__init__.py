"""The loop over a policy and an estimator, its steps, checkpoints and trace."""
