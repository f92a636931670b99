"""What the operator wants: options, flags and configuration files, checked, as values. It starts nothing."""
