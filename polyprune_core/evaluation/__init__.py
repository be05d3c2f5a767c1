"""Text in; losses, statistics of inputs, perplexity, tasks and latency out."""
