"""Objectives: scalars between synthetic and real batches at given parameters."""
