"""The trust card: the answers on one page."""
