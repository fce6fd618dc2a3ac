"""What is known to be right: known answers, when they are checked, and what is at fault where they fail."""
