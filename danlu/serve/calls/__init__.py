"""How a model writes calls of functions and reasoning, held to that form and taken apart again."""
