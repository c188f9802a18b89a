"""What kinds of mistakes are these, and what does each need?"""
