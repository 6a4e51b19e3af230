"""What others have built, run beside ours: in the same run, on the same data, at its best."""
