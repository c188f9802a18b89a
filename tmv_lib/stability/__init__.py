"""Does the reason survive a change that does not matter?"""
