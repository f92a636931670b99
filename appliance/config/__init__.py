"""Options, flags and configuration files as checked values. It starts nothing."""
