"""What an evaluation is of: the policy of a checkpoint, which this process runs, or one behind a server."""
