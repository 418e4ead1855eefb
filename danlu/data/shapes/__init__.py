"""What rows mean: keys, speakers, turns, and what of them is learnt."""
