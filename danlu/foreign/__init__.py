"""Settings of other training tools -> a recipe: one table a tool, a key a row. Runs none of them."""
