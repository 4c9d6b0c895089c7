"""Actions: what they mean, how they are normalised and converted, and what is known of a run's data."""
