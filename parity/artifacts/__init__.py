"""Converted and quantized files kept between runs, each under what it was made from."""
