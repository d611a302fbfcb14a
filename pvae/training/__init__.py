"""From a configuration to a trained run: the loop, the step, schedules, resuming."""
