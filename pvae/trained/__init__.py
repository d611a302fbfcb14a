"""An opened run, and what one does with it: encode, decode, score, sample, reconstruct, export."""
