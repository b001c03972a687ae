"""Planted faults: real porting bugs, put in one at a time, that the command line must catch and blame rightly."""
