"""The outside world behind small protocols: the only side effects of the program."""
