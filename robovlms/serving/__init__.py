"""A policy behind a port: the clients of other projects, and our own, ask it for actions."""
