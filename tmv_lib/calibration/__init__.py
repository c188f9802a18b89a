"""When it says 87 %, is it right 87 % of the time?"""
