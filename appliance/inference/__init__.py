"""One request from decoded to answered, whatever its protocol: resolved, checked, sent to a worker."""
