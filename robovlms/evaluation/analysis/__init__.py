"""What results say: pairs of runs on the same episodes, what a policy makes of its instructions, and certificates."""
