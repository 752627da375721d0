"""Weights: files to digests, tensors in order, answers to challenges."""
