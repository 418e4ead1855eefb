"""What each command does. Options, defaults and help come from the pydantic models of the rooms below."""
