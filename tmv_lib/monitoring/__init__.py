"""Does it hold here, and does it hold still? Evidence that may be looked at after every patient."""
