"""Clips: a fixed number of frames, grey or RGB."""
