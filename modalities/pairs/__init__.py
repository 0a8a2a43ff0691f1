"""Pairs: an image and its captions, or any two fields that belong together."""
