"""A phone's runtime, fitted to what somebody measured on it."""
