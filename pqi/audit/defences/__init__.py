"""One defence a file, with the attack that it answers and what it costs."""
