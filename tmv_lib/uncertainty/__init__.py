"""Which doubts are genuine, and which errors are confident?"""
