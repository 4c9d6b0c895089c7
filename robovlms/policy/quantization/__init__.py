"""Weights in eight bits for a policy that acts, and how much that changes what it does."""
