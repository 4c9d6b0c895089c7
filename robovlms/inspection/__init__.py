"""What a data set holds."""
