"""What a row has seen and said, and what that does to its next scores: penalties, bans, forms."""
