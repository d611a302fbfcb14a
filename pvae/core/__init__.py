"""What every room uses: errors, records, random state, files, and the version of the package."""

__version__ = "0.3.0"
