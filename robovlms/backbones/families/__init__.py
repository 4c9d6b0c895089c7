"""One file per VLM family."""
