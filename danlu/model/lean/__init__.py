"""The pass for answering: a model of a known kind, written flat."""
