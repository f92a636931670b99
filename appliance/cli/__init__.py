"""All command lines: no other room reads arguments."""
