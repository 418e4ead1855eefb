"""Text -> token ids: templates, control tokens, long texts."""
