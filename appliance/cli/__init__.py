"""Every command line: nothing else reads arguments."""
