"""Depth: name, skip, rank, remove and repack the sub-layers of a decoder."""
