"""Text: sentences as token embeddings, as vectors of a frozen encoder, or as ready vectors."""
