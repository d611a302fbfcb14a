"""Errors, random state, devices, processes and files, used by all other packages of pvae."""
