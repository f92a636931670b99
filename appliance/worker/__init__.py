"""The process of one version: loads it, tries it, queues, merges and runs requests. It knows no client."""
