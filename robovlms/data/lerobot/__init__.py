"""LeRobot folders."""
