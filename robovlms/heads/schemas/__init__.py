"""Options of single heads."""
