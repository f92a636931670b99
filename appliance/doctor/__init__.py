"""`dropserve doctor`: checks the machine and the configuration, and says what to do. It changes nothing."""
