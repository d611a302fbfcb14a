"""From a configuration to a trained run: the loop, schedules, callbacks, resuming."""
