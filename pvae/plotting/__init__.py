"""Pictures: arrays and runs become matplotlib figures."""
