"""What results look like: tables for people, JSON for programs."""
