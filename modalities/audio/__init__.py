"""Audio clips of one class each: spoken words, sounds, notes; as waveforms or log-mel spectra."""
