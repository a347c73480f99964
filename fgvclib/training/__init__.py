"""The training loop; runs on disk; their scores."""
