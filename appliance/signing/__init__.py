"""Signatures of models, as the OpenSSF's Model Signing v1 defines them: made, and verified before a version is loaded.

It knows folders, keys and certificates, and nothing of servables or of what loads them."""
