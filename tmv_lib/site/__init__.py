"""Is the place where it is used like the place it learned from?"""
