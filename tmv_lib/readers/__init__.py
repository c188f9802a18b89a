"""Reader studies: what doctors make of the cases alone, with the system, and with the system and its deferrals."""
