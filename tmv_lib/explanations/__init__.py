"""Where does it look, and does that depend on what it learned?"""
