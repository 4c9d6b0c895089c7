"""Options of single simulators."""
