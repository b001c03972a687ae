"""Converted files, and what was recorded in PyTorch, kept between runs, each under what it was made from."""
