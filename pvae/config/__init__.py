"""What a training is: its options, said once, and the published systems as presets."""
