"""Pictures to train and validate on."""
