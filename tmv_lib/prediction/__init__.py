"""The system on disk, asked about new images."""
