"""The command line, the notebook runner, the course."""
