"""Decides which versions of which models are loaded. It never touches a request."""
