"""CALVIN's long-horizon benchmark: the official chains, tasks and initial states, and the official environment."""
