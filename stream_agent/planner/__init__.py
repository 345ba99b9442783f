"""Planners behind one protocol, and the ladder that picks between their answers."""
