"""A look at data: figures, duplicates, an example as the model will see it."""
