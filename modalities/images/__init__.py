"""Images: grey or RGB, 8 to 224 pixels, from a data set, a folder or tensors."""
