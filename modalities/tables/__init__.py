"""Tables, folders and Python objects with labels: what every modality opens alike."""
