"""Precision passes: what a graph computes in fewer bits, written into the graph itself."""
