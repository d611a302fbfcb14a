"""The commands: their arguments, messages, signals and exit statuses."""
