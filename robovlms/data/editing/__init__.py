"""Data sets edited and converted into a new LeRobot folder."""
