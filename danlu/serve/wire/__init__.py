"""What OpenAI's clients send, read and checked."""
