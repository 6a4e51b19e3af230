"""What only a GPU can show, in three parts of under nine minutes each; see `__main__`."""
