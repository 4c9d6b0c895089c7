"""From the command line to a typed config; from an exception to a message."""
