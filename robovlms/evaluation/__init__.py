"""Closed-loop rollouts, the statistics that make them comparable, and the report that shows them."""
