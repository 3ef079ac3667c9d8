"""Pictures, films and pages of what was found."""
