"""Paths -> files -> rows, whatever their encoding, compression and kind."""
