"""Runs one request from decoded to answered, for every protocol: resolved, checked, sent to a worker."""
