"""Errors, random state, devices, processes and files: what every other room stands on."""
