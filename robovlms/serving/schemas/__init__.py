"""Options of single protocols."""
