"""A run's figures, told to experiment trackers while it goes on: they hear the journal, and training knows none."""
