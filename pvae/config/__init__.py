"""The options of a training, each defined once, and the published systems as presets."""
