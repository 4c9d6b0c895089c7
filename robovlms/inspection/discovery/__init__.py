"""What an unknown folder holds, and the data config that follows from it."""
