"""What a run leaves behind and goes on from: its folder, its state, and how both are written."""
