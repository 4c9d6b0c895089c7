"""HDF5 files of ALOHA and ACT."""
