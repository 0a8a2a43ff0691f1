"""Nets that several modalities are made of; each is written in plain operations once, here."""
