"""Many texts in one row of tokens, each as if it were alone."""
