"""Conversion jobs, which find a faster form of a version: their settings, their process, their report for people."""
