"""Bundles in the form that other servers read. Plans are copied as they are, never changed."""
