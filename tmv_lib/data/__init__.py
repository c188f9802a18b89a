"""What comes in: images and case tables of every source, and what is wrong with them."""
