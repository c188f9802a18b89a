"""The built-in radiograph, and what is planted in it."""
