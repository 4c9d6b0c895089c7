"""Options of single backbones."""
