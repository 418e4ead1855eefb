"""What is told of a request while it goes on: its text as it grows, and what was chosen from what."""
