"""How well does a network read, and does a second one err on different images?"""
