"""What do doctors make of the cases, with the system and without it?"""
