"""From recorded frames to what a vision tower reads."""
