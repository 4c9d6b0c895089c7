"""Where models come from: published files and sizes, what must be converted first, licences."""
