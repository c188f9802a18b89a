"""Which cases go to a doctor, and what does that buy?"""
