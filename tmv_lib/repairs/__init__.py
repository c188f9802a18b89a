"""What would mending each kind of failure buy, and what did it buy?"""
