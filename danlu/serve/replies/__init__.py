"""An answer in OpenAI's words, whole."""
